"""Opens the engine that runs a bundle."""

import logging
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from bundle.manifest import Bundle
from engines.base import Engine, FloatType, Mode
from engines.guard import guard

logger = logging.getLogger(__name__)

Runtime = Literal["openvino", "onnxruntime", "tensorrt", "torch-cuda", "onnxruntime-cuda"]
EngineName = Literal["auto", Runtime]


class GpuOptions(NamedTuple):
    """Options of the engines on a GPU."""

    may_build: bool = False  # TensorRT: a plan at start, if the bundle has none for this machine
    max_graphs: int = 16  # CUDA graphs kept
    device: int = 0  # the number of the GPU, of those that CUDA_VISIBLE_DEVICES allows


class _Options(NamedTuple):
    threads: int | None
    mode: Mode
    float_type: FloatType | None
    gpu: GpuOptions


DEFAULT_GPU_OPTIONS = GpuOptions()


def open_engine(
    bundle: Bundle,
    *,
    engine: EngineName = "auto",
    threads: int | None = None,
    mode: Mode = "latency",
    float_type: FloatType | None = None,
    gpu: GpuOptions = DEFAULT_GPU_OPTIONS,
) -> Engine:
    """Open an engine on a bundle.

    Args:
        bundle: with its files checked by `Bundle.load`.
        engine: "auto" takes TensorRT if the bundle has a plan and the machine a GPU, else OpenVINO
            if it can be imported, else ONNX Runtime.
        threads: of the engine in total; None for one per core that the process may use, or half
            as many if the mode is "auto" and that is faster.
        mode: how the threads share the work; see `Mode`. OpenVINO only.
        float_type: of what is not quantised in bf16 and int8; None for whichever is faster. It is
            fp32 where bf16 is not possible. OpenVINO only.
        gpu: for engines on a GPU.

    Raises:
        ValueError: the bundle does not load, or the engine cannot be imported; says what to do.
    """
    name = _fastest_here(bundle, gpu.device) if engine == "auto" else engine
    if mode == "throughput" and name != "openvino":
        logger.warning("%s has no throughput mode: all threads run one batch", name)
    opened = _OPENERS[name](bundle, _Options(threads, mode, float_type, gpu))
    return guard(opened, bundle.manifest)


def _fastest_here(bundle: Bundle, device: int) -> Runtime:
    if bundle.manifest.tensorrt is not None:
        from engines.gpu.cuda import load_cuda
        from engines.gpu.tensorrt_runtime import load_tensorrt

        try:
            load_tensorrt()
            load_cuda(device)
        except ValueError as error:
            logger.warning("using the CPU instead of the bundle's TensorRT plan: %s", error)
        else:
            return "tensorrt"
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        logger.warning(
            "OpenVINO cannot be imported (%s): using ONNX Runtime, which is slower", error
        )
        return "onnxruntime"
    return "openvino"


# --- one function per runtime, which is imported only when chosen


def _open_openvino(bundle: Bundle, options: _Options) -> Engine:
    try:
        from engines.cpu.openvino_engine import OpenVinoEngine
    except ImportError as error:
        raise ValueError(
            f"OpenVINO cannot be imported ({error}); install it, or choose engine onnxruntime"
        ) from error
    return OpenVinoEngine(
        bundle, threads=options.threads, mode=options.mode, float_type=options.float_type
    )


def _open_onnxruntime(bundle: Bundle, options: _Options) -> Engine:
    from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, threads=options.threads)


def _open_onnxruntime_cuda(bundle: Bundle, options: _Options) -> Engine:
    from engines.gpu.onnxruntime_cuda import open_on_cuda

    return open_on_cuda(bundle, options.threads, device=options.gpu.device)


def _open_tensorrt(bundle: Bundle, options: _Options) -> Engine:
    from engines.gpu.cuda import load_cuda
    from engines.gpu.tensorrt_engine import TensorRTEngine
    from engines.gpu.tensorrt_plans import find_plan
    from engines.gpu.tensorrt_runtime import load_tensorrt

    trt, cuda = load_tensorrt(), load_cuda(options.gpu.device)
    plan = find_plan(bundle, trt=trt, cuda=cuda, may_build=options.gpu.may_build)
    return TensorRTEngine(
        bundle.manifest,
        plan.data,
        profiles=plan.profiles,
        trt=trt,
        cuda=cuda,
        max_graphs=options.gpu.max_graphs,
        graph=plan.graph,
    )


def _open_torch_cuda(bundle: Bundle, options: _Options) -> Engine:
    try:
        from engines.gpu.torch_cuda import open_on_gpu
    except ImportError as error:
        raise ValueError(
            f"torch-cuda cannot be loaded ({error}); install what it needs with "
            "`pip install --group torch-cuda`, or serve with another DETR_ENGINE"
        ) from error
    return open_on_gpu(bundle, max_graphs=options.gpu.max_graphs, device=options.gpu.device)


_OPENERS: Mapping[Runtime, Callable[[Bundle, _Options], Engine]] = {
    "openvino": _open_openvino,
    "onnxruntime": _open_onnxruntime,
    "onnxruntime-cuda": _open_onnxruntime_cuda,
    "tensorrt": _open_tensorrt,
    "torch-cuda": _open_torch_cuda,
}
