"""TensorRT on an NVIDIA GPU: a plan, its buffers, and the one stream that everything runs in.

All memory is allocated at start, for the largest batch of the profiles. An inference copies the
images into pinned memory one by one, so that the GPU fetches one while the next is copied; then it
launches the network and waits for its few outputs.
"""

import logging
import math
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.layout import IMAGES, OUTPUTS, PADDING_MASK, PLUGIN_FORM
from bundle.manifest import Manifest, TensorSpec
from bundle.postprocess import RawOutput
from bundle.tensorrt_plan import BatchShape, ShapeProfile, max_batch
from engines.base import EngineFailure, EngineInfo, float_type_of
from engines.gpu.cuda import MIB, Cuda, CudaError, Device, DeviceMemory, Stream
from engines.gpu.tensorrt_contexts import Lanes
from engines.gpu.tensorrt_runtime import REBUILD, TensorRTError, log_of, require
from engines.gpu.tensorrt_tensors import Buffer, check_tensors, dims_of

logger = logging.getLogger(__name__)


class TensorRTEngine:
    """A loaded plan, warmed up at every profile and ready to run."""

    def __init__(
        self,
        manifest: Manifest,
        plan: bytes,
        *,
        profiles: tuple[ShapeProfile, ...],
        trt: Any,
        cuda: Cuda,
        max_graphs: int,
        graph: str = PLUGIN_FORM,
    ) -> None:
        """Load the plan.

        Args:
            profiles: the profiles it was built with.
            trt, cuda: TensorRT and the CUDA runtime of this machine.
            max_graphs: most CUDA graphs kept; see `Lanes`.
            graph: the form of the graph it was built from.

        Raises:
            ValueError: the plan does not load or does not match the manifest, the profiles do not
                take every image, or the GPU has too little memory.
        """
        self.name = manifest.name
        # The bundle's own limit is for a CPU.
        self.max_batch_size = max_batch(profiles, manifest.preprocess)
        self.largest_batches = tuple(profile.max for profile in profiles)
        self._profiles = profiles
        self._resources = ExitStack()
        device = cuda.device()
        try:
            self._load(manifest, plan, trt, cuda, max_graphs)
            self._warm_up()
        except (CudaError, TensorRTError) as error:
            self.close()
            raise ValueError(_explain(error, device.name, cuda)) from error
        except BaseException:
            self.close()
            raise
        self._measure_memory(before=device, now=cuda.device())
        self.info = EngineInfo(
            *("tensorrt", manifest.precision, float_type_of(manifest.precision), graph),
            threads=1,
            streams=1,
        )

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`."""
        shape = BatchShape(*padding_mask.shape)
        profile = self._profile_for(shape)
        try:
            return self._execute(profile, images, padding_mask)
        except (CudaError, TensorRTError) as error:
            raise EngineFailure(f"TensorRT failed on {images.shape}: {error}") from error

    def close(self) -> None:
        """See `Engine.close`."""
        try:
            self._resources.close()
        except CudaError as error:  # the GPU has failed; nothing more can be done
            logger.warning("the GPU did not release everything: %s", error)

    # --- at start

    def _load(self, manifest: Manifest, plan: bytes, trt: Any, cuda: Cuda, max_graphs: int) -> None:
        if self.max_batch_size < 1:
            sizes = [tuple(profile.max) for profile in self._profiles]
            short, long = manifest.preprocess.short_side, manifest.preprocess.long_side
            raise ValueError(
                f"expected profiles that take images of {short}x{long} and {long}x{short}, got "
                f"profiles up to {sizes}; {REBUILD}"
            )
        log = log_of(trt)
        log.take_errors()
        runtime = trt.Runtime(log)
        engine = require(trt, runtime.deserialize_cuda_engine(plan), call="deserialize_cuda_engine")
        check_tensors(engine, manifest, profiles=self._profiles)
        self._stream = Stream(cuda)
        self._resources.callback(self._stream.close)
        self._activations = DeviceMemory(cuda, engine.device_memory_size_v2)
        self._resources.callback(self._activations.close)
        self._inputs, self._outputs = (
            {spec.name: self._buffer(cuda, spec) for spec in specs}
            for specs in (manifest.inputs, manifest.outputs)
        )
        buffers = self._inputs | self._outputs
        self._io_bytes = sum(buffer.device.num_bytes for buffer in buffers.values())
        self._lanes = Lanes(
            trt,
            engine,
            stream=self._stream,
            addresses={name: buffer.device.address for name, buffer in buffers.items()},
            activations=self._activations,
            input_shapes=lambda shape: {
                name: buffer.dims(shape) for name, buffer in self._inputs.items()
            },
            max_graphs=max_graphs,
        )
        self._resources.callback(self._lanes.close)

    def _buffer(self, cuda: Cuda, spec: TensorSpec) -> Buffer:
        largest = max(math.prod(dims_of(spec, profile.max)) for profile in self._profiles)
        buffer = Buffer(cuda, spec, num_elements=largest)
        self._resources.callback(buffer.close)
        return buffer

    def _warm_up(self) -> None:
        """Run every profile: its largest batch, and the one it is tuned for until captured."""
        for index, profile in enumerate(self._profiles):
            for shape in (profile.max, profile.opt, profile.opt):
                images, padding_mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.bool_)
                self._execute(index, images, padding_mask)

    def _measure_memory(self, *, before: Device, now: Device) -> None:
        """Set and log how much memory the engine takes, as the drop in free memory.

        TensorRT and the driver allocate weights, contexts and graphs themselves.
        """
        self.gpu_memory_bytes = max(0, before.free_bytes - now.free_bytes)
        logger.info(
            "%s holds %d MiB of %s: activations %d, inputs and outputs %d, and weights, contexts "
            "and CUDA graphs (%d); %d of %d MiB are free",
            *(self.name, self.gpu_memory_bytes // MIB, now.name),
            *(self._activations.num_bytes // MIB, self._io_bytes // MIB, self._lanes.num_graphs),
            *(now.free_bytes // MIB, now.total_bytes // MIB),
        )

    # --- at work

    def _profile_for(self, shape: BatchShape) -> int:
        """The smallest profile that takes the batch, padded if necessary."""
        fitting = [
            (not profile.min.fits(shape), math.prod(profile.max), index)
            for index, profile in enumerate(self._profiles)
            if shape.fits(profile.max)
        ]
        if not fitting:
            sizes = [tuple(profile.max) for profile in self._profiles]
            raise EngineFailure(f"expected a batch of at most one of {sizes}, got {tuple(shape)}")
        return min(fitting)[-1]

    def _execute(
        self, index: int, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]
    ) -> RawOutput:
        least = self._profiles[index].min
        batch, height, width = padding_mask.shape
        shape = BatchShape(batch, max(height, least.height), max(width, least.width))
        try:
            self._upload(IMAGES, images, shape, padding=0)
            self._upload(PADDING_MASK, padding_mask, shape, padding=1)
            self._lanes.enqueue(index, shape)
            answers = [self._download(name, shape) for name in OUTPUTS]
            self._stream.synchronize()
        except BaseException:
            self._settle()
            raise
        return RawOutput(*(answer.copy() for answer in answers))

    def _upload(self, name: str, rows: npt.NDArray[Any], shape: BatchShape, padding: int) -> None:
        buffer = self._inputs[name]
        pinned = buffer.pinned(shape)
        if rows.shape != pinned.shape:
            pinned[...] = padding
        for row, source in enumerate(rows):
            pinned[row, : source.shape[0], : source.shape[1]] = source
            self._stream.upload(buffer.device.address + row * pinned[row].nbytes, pinned[row])

    def _download(self, name: str, shape: BatchShape) -> npt.NDArray[Any]:
        """The array that will hold the output once the stream has run."""
        buffer = self._outputs[name]
        pinned = buffer.pinned(shape)
        self._stream.download(pinned, buffer.device.address)
        return pinned

    def _settle(self) -> None:
        """Wait until nothing uses the buffers any more, ignoring failures."""
        try:
            self._stream.synchronize()
        except CudaError as error:
            logger.warning("the GPU failed: %s", error)


def _explain(error: Exception, gpu: str, cuda: Cuda) -> str:
    """The message for an engine that does not start, with what to do."""
    if "out of memory" not in str(error).lower():
        return f"the plan does not run on {gpu}: {error}; {REBUILD}"
    free_bytes, total_bytes = cuda.call("cudaMemGetInfo")
    return (
        f"{gpu} has too little memory: {error}, {free_bytes // MIB} of "
        f"{total_bytes // MIB} MiB are free; stop other programs on it, or rebuild the plan for "
        "smaller batches with `make export RUNTIME=tensorrt SHAPES=...`"
    )
