"""PyTorch on an NVIDIA GPU: the graph with the native operator, where there is no TensorRT.

Memory for inputs and outputs is allocated at start, for the largest batch, and twice: while a batch
runs, the next one is brought to the GPU. The threads that call `run` do the latter and wait for the
outputs. One more thread starts everything that is computed, since the handles of cuBLAS and cuDNN
are made for each thread, in its first run, and none may be made while a graph is captured.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bundle.layout import HALF_FORM, INPUTS, OUTPUTS, PLUGIN_FORM
from bundle.manifest import Bundle, TensorSpec
from bundle.postprocess import RawOutput
from bundle.tensorrt_plan import BatchShape, ShapeProfile, default_profiles, max_batch
from engines.base import (
    EngineFailure,
    EngineInfo,
    check_names,
    float_type_of,
    graph_precision,
    reason,
)
from engines.gpu.tensorrt_tensors import dims_of
from engines.gpu.torch_buffers import Buffers, Size
from engines.gpu.torch_device import Cpu, Device, Gpu, start_of
from engines.gpu.torch_lanes import Lanes, Outputs
from engines.gpu.torch_program import Known, Program
from plugins import library
from plugins.gpu_kernels import describe, gpu_kernels

logger = logging.getLogger(__name__)

MIB = 1024 * 1024


class TorchEngine:
    """A bundle's graph in PyTorch, on one device."""

    runs_at_once = 2

    def __init__(
        self,
        bundle: Bundle,
        where: Device,
        *,
        profiles: tuple[ShapeProfile, ...],
        max_graphs: int,
    ) -> None:
        """Load the graph in the bundle's precision if it has one, else the one in float32.

        Args:
            profiles: the batches to be ready for.
            max_graphs: most CUDA graphs kept; see `Lanes`.

        Raises:
            ValueError: the graph does not load or does not match the manifest.
            torch.OutOfMemoryError: the device has too little memory.
        """
        manifest = bundle.manifest
        form, precision = _form_and_precision(bundle)
        self.name = manifest.name
        self.max_batch_size = max_batch(profiles, manifest.preprocess)
        self.largest_batches = tuple(profile.max for profile in profiles)
        self.gpu_memory_bytes = 0
        self.info = EngineInfo(
            "torch-cuda", precision, float_type_of(precision, form), form, threads=1, streams=1
        )
        self._where = where
        self._profiles = profiles
        self._specs = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
        path = bundle.graph(form)
        with where.computing():
            program = Program(path, where.device)
            check_names(path, "inputs", specs=manifest.inputs, names=program.input_names)
            check_names(path, "outputs", specs=manifest.outputs, names=program.output_names)
            sizes = {name: self._size(spec) for name, spec in self._specs.items()}
            self._inputs = {
                name: torch.empty(sizes[name][0], dtype=sizes[name][1], device=where.device)
                for name in INPUTS
            }
            self._free: SimpleQueue[Buffers] = SimpleQueue()
            for _ in range(self.runs_at_once):
                self._free.put(Buffers(where, sizes))
        self._program = program
        self._lanes = Lanes(
            self._compute, capture=where.capture, wait=where.wait, max_graphs=max_graphs
        )
        self._launcher = ThreadPoolExecutor(1, thread_name_prefix="torch-cuda")

    def warm_up(self) -> None:
        """Run every profile: its largest batch, and its usual one until that is captured."""
        for profile in self._profiles:
            for shape in (profile.max, profile.opt, profile.opt):
                self._execute(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.bool_))

    @property
    def num_graphs(self) -> int:
        """The number of CUDA graphs kept now."""
        return self._lanes.num_graphs

    @property
    def num_captures(self) -> int:
        """See `CapturesGraphs.num_captures`."""
        return self._lanes.num_captures

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`."""
        shape = BatchShape(*padding_mask.shape)
        if not any(shape.fits(largest) for largest in self.largest_batches):
            sizes = [tuple(largest) for largest in self.largest_batches]
            raise EngineFailure(f"expected a batch of at most one of {sizes}, got {tuple(shape)}")
        try:
            return self._execute(images, padding_mask)
        except (RuntimeError, ValueError) as error:
            raise EngineFailure(f"PyTorch failed on {images.shape}: {reason(error)}") from error

    def close(self) -> None:
        """See `Engine.close`."""
        self._launcher.submit(self._lanes.close).result()
        self._launcher.shutdown()
        while not self._free.empty():
            self._free.get()
        self._inputs.clear()
        del self._program

    def _size(self, spec: TensorSpec) -> Size:
        dims = (dims_of(spec, largest) for largest in self.largest_batches)
        return max(map(math.prod, dims)), getattr(torch, spec.dtype)

    def _execute(
        self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]
    ) -> RawOutput:
        buffers = self._free.get()
        try:
            buffers.upload((images, padding_mask))
            self._launcher.submit(self._launch, buffers, BatchShape(*padding_mask.shape)).result()
            return buffers.wait()
        except BaseException:
            self._launcher.submit(self._where.wait).result()  # until nothing uses the buffers
            raise
        finally:
            self._free.put(buffers)

    def _launch(self, buffers: Buffers, shape: BatchShape) -> None:
        """Compute what is in the buffers; returns before that is done."""
        with self._where.computing():
            buffers.deliver(self._inputs_of(shape))
            buffers.download(dict(zip(OUTPUTS, self._lanes.run(shape), strict=True)))

    def _inputs_of(self, shape: BatchShape) -> dict[str, Tensor]:
        return {
            name: start_of(memory, dims_of(self._specs[name], shape))
            for name, memory in self._inputs.items()
        }

    def _compute(self, shape: BatchShape, known: Known) -> Outputs:
        return self._program.run(self._inputs_of(shape), known=known)


def open_on_gpu(bundle: Bundle, *, max_graphs: int, device: int = 0) -> TorchEngine:
    """The engine on one of this machine's GPUs, warmed up.

    Raises:
        ValueError: there is no such GPU that PyTorch can use, its kernels are not built, or it has
            too little memory; says what to do. Also raised as by `TorchEngine`.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            f"PyTorch {torch.__version__} finds no GPU; check `nvidia-smi`, install a PyTorch "
            "with CUDA (the name of one without ends in +cpu), start a container with `--gpus "
            "all`, or serve with another DETR_ENGINE"
        )
    if device >= torch.cuda.device_count():
        raise ValueError(
            f"expected DETR_DEVICE below {torch.cuda.device_count()}, the number of GPUs that this "
            f"process may use, got {device}; CUDA_VISIBLE_DEVICES limits them"
        )
    kernels = gpu_kernels()
    if kernels is None:
        raise ValueError(
            f"expected {library.CUDA_KERNELS} in {library.FOLDER}, or Triton and a C compiler; run "
            "`make plugins`, which needs nvcc, install triton, or serve with another DETR_ENGINE"
        )
    gpu = Gpu(device)
    before = gpu.memory_bytes()
    try:
        engine = TorchEngine(
            bundle,
            gpu,
            profiles=default_profiles(bundle.manifest.preprocess),
            max_graphs=max_graphs,
        )
        engine.warm_up()
    except RuntimeError as error:
        raise ValueError(_explain(error)) from error
    engine.gpu_memory_bytes = max(0, gpu.memory_bytes() - before)
    logger.info(
        "%s holds %d MiB of the GPU; CUDA graphs: %d; multi-scale deformable attention: %s",
        *(engine.name, engine.gpu_memory_bytes // MIB, engine.num_graphs, describe(kernels)),
    )
    return engine


def open_on_cpu(bundle: Bundle) -> TorchEngine:
    """The same program on the CPU, to be compared with others; slow in half precision.

    Raises:
        ValueError: as `TorchEngine`.
    """
    manifest = bundle.manifest
    profiles = default_profiles(manifest.preprocess, manifest.max_batch_size)
    return TorchEngine(bundle, Cpu(), profiles=profiles, max_graphs=0)


def _form_and_precision(bundle: Bundle) -> tuple[str, str]:
    manifest = bundle.manifest
    if manifest.precision in ("int8", "fp8"):
        raise ValueError(
            f"{bundle.directory}: torch-cuda does not compute in {manifest.precision}; export with "
            "PRECISION=fp16, bf16 or fp32, or serve with another DETR_ENGINE"
        )
    form = HALF_FORM if HALF_FORM in manifest.graphs else PLUGIN_FORM
    return form, graph_precision(manifest, form)


def _explain(error: RuntimeError) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU has too little memory: {reason(error)}; stop other programs on it, or serve "
            "on a larger one"
        )
    return f"the graph does not run on this GPU: {reason(error)}"
