"""TensorRT on an NVIDIA GPU: a plan, its buffers, and the stream that computes.

All memory is allocated at start, for the largest batch of the profiles. Two threads may be in `run`
at a time: while one batch is computed, the next one comes to the GPU in a stream of its own, and is
launched behind it. It is then copied to where the network reads, which is the same for every batch,
since a CUDA graph has the addresses in it.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.layout import PLUGIN_FORM
from bundle.manifest import Manifest
from bundle.postprocess import RawOutput
from bundle.tensorrt_plan import BatchShape, ShapeProfile, max_batch
from engines.base import EngineFailure, EngineInfo, float_type_of, graph_precision
from engines.gpu.cuda import MIB, Cuda, CudaError, Device, DeviceMemory, Stream
from engines.gpu.tensorrt_buffers import Buffers
from engines.gpu.tensorrt_contexts import Lanes
from engines.gpu.tensorrt_runtime import REBUILD, TensorRTError, log_of, require
from engines.gpu.tensorrt_tensors import check_tensors, dims_of, largest_bytes

logger = logging.getLogger(__name__)


class TensorRTEngine:
    """A loaded plan, warmed up at every profile and ready to run."""

    runs_at_once = 2

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
        self._cuda = cuda
        self._launching = Lock()  # held by the thread that puts a run into the stream
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
        precision = graph_precision(manifest, graph)
        self.info = EngineInfo(
            *("tensorrt", precision, float_type_of(precision, graph), graph),
            threads=1,
            streams=1,
        )

    @property
    def num_captures(self) -> int:
        """See `CapturesGraphs.num_captures`."""
        return self._lanes.num_captures

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
            with self._resources:
                self._cuda.use()
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
        kept = self._resources.enter_context
        self._stream, self._copies = (kept(closing(Stream(cuda))) for _ in range(2))
        self._activations = kept(closing(DeviceMemory(cuda, engine.device_memory_size_v2)))
        self._inputs, self._outputs = (
            {
                spec.name: kept(closing(DeviceMemory(cuda, largest_bytes(spec, self._profiles))))
                for spec in specs
            }
            for specs in (manifest.inputs, manifest.outputs)
        )
        self._io_bytes = sum(
            memory.num_bytes for memory in (*self._inputs.values(), *self._outputs.values())
        )
        self._free: SimpleQueue[Buffers] = SimpleQueue()
        for _ in range(self.runs_at_once):
            buffers = Buffers(cuda, manifest, copies=self._copies, profiles=self._profiles)
            self._free.put(kept(closing(buffers)))
            self._io_bytes += buffers.num_bytes
        self._lanes = Lanes(
            trt,
            engine,
            stream=self._stream,
            addresses={
                name: memory.address for name, memory in (self._inputs | self._outputs).items()
            },
            activations=self._activations,
            input_shapes=lambda shape: {
                spec.name: dims_of(spec, shape) for spec in manifest.inputs
            },
            runs_at_once=self.runs_at_once,
            max_graphs=max_graphs,
        )
        self._resources.callback(self._lanes.close)

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
        self._cuda.use()
        with self._taken() as buffers:
            buffers.upload(images, padding_mask, shape=shape)
            with self._launching:
                buffers.deliver(self._stream, self._inputs, shape=shape)
                self._lanes.enqueue(index, shape)
                buffers.download(self._stream, self._outputs, shape=shape)
            return buffers.wait()

    @contextmanager
    def _taken(self) -> Iterator[Buffers]:
        """Buffers for one run; when they are given back, nothing uses them any more."""
        buffers = self._free.get()
        try:
            yield buffers
        except BaseException:
            with self._launching:  # nothing may be recorded while another thread captures
                for stream in (self._copies, self._stream):
                    self._settle(stream)
            raise
        finally:
            self._free.put(buffers)

    def _settle(self, stream: Stream) -> None:
        """Wait until a stream is empty, ignoring failures."""
        try:
            stream.synchronize()
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
