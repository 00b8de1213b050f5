"""From a bundle's directory to the engine that runs it."""

import logging
from pathlib import Path
from typing import Literal, NamedTuple, assert_never

from bundle.manifest import Manifest
from engines.base import Engine, Mode

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "openvino", "onnxruntime", "tensorrt", "onnxruntime-cuda"]


class GpuOptions(NamedTuple):
    """What concerns TensorRT only."""

    may_build: bool = False  # a plan at start, where the bundle has none for this machine
    max_graphs: int = 16  # CUDA graphs that are kept


DEFAULT_GPU_OPTIONS = GpuOptions()


def open_engine(
    directory: Path,
    *,
    engine: EngineName = "auto",
    threads: int | None = None,
    mode: Mode = "latency",
    gpu: GpuOptions = DEFAULT_GPU_OPTIONS,
) -> tuple[Manifest, Engine]:
    """Check the bundle and open an engine on it.

    Args:
        directory: of the bundle.
        engine: "auto" takes TensorRT where the bundle has a plan and there is a GPU, else OpenVINO
            where it can be imported, else ONNX Runtime.
        threads: of the engine in all; None takes one for each core that the process may use.
        mode: what the threads do; see `Mode`. OpenVINO only.
        gpu: for TensorRT.

    Raises:
        ValueError: the bundle is missing, damaged or does not load, or the engine cannot be
            imported; says what to do.
    """
    manifest = Manifest.load(directory)
    name = _fastest_here(manifest) if engine == "auto" else engine
    if mode == "throughput" and name != "openvino":
        logger.warning("%s has no mode throughput: all threads run one batch", name)
    if name == "openvino":
        try:
            from engines.cpu.openvino_engine import OpenVinoEngine
        except ImportError as error:
            raise ValueError(
                f"OpenVINO cannot be imported ({error}); install it, or choose engine onnxruntime"
            ) from error
        return manifest, OpenVinoEngine(directory, manifest, threads=threads, mode=mode)
    if name == "onnxruntime":
        from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine

        return manifest, OnnxRuntimeEngine(directory, manifest, threads=threads)
    if name == "tensorrt":
        return manifest, _open_tensorrt(directory, manifest, gpu)
    if name == "onnxruntime-cuda":
        from engines.gpu.onnxruntime_cuda import open_on_cuda

        return manifest, open_on_cuda(directory, manifest, threads)
    assert_never(name)


def _open_tensorrt(directory: Path, manifest: Manifest, gpu: GpuOptions) -> Engine:
    from engines.gpu.cuda import load_cuda
    from engines.gpu.tensorrt_engine import TensorRTEngine
    from engines.gpu.tensorrt_plans import find_plan
    from engines.gpu.tensorrt_runtime import load_tensorrt

    trt, cuda = load_tensorrt(), load_cuda()
    plan = find_plan(directory, manifest, trt=trt, cuda=cuda, may_build=gpu.may_build)
    return TensorRTEngine(
        *(manifest, plan.data, plan.profiles),
        trt=trt,
        cuda=cuda,
        max_graphs=gpu.max_graphs,
        graph=plan.graph,
    )


def _fastest_here(manifest: Manifest) -> Literal["tensorrt", "openvino", "onnxruntime"]:
    if manifest.tensorrt is not None:
        from engines.gpu.cuda import load_cuda
        from engines.gpu.tensorrt_runtime import load_tensorrt

        try:
            load_tensorrt()
            load_cuda()
        except ValueError as error:
            logger.warning("the bundle's TensorRT plan is not used, but the CPU: %s", error)
        else:
            return "tensorrt"
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        logger.warning("OpenVINO cannot be imported (%s): ONNX Runtime is used, slower", error)
        return "onnxruntime"
    return "openvino"
