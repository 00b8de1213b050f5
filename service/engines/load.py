"""From a bundle's directory to the engine that runs it."""

import logging
from pathlib import Path
from typing import Literal, assert_never

from bundle.manifest import Manifest
from service.engines.base import Engine, Mode

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "openvino", "onnxruntime"]


def open_engine(
    directory: Path,
    *,
    engine: EngineName = "auto",
    threads: int | None = None,
    mode: Mode = "latency",
) -> tuple[Manifest, Engine]:
    """Check the bundle and open an engine on it.

    Args:
        directory: of the bundle.
        engine: "auto" takes OpenVINO where it can be imported, else ONNX Runtime.
        threads: of the engine in all; None takes one for each core that the process may use.
        mode: what the threads do; see `Mode`.

    Raises:
        ValueError: the bundle is missing, damaged or does not load, or the engine cannot be
            imported; says what to do.
    """
    manifest = Manifest.load(directory)
    name = _fastest_here() if engine == "auto" else engine
    if name == "openvino":
        try:
            from service.engines.openvino_engine import OpenVinoEngine
        except ImportError as error:
            raise ValueError(
                f"OpenVINO cannot be imported ({error}); install it, or choose engine onnxruntime"
            ) from error
        return manifest, OpenVinoEngine(directory, manifest, threads=threads, mode=mode)
    if name == "onnxruntime":
        from service.engines.onnxruntime_engine import OnnxRuntimeEngine

        if mode == "throughput":
            logger.warning("ONNX Runtime has no mode throughput: all threads run one batch")
        return manifest, OnnxRuntimeEngine(directory, manifest, threads=threads)
    assert_never(name)


def _fastest_here() -> Literal["openvino", "onnxruntime"]:
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        logger.warning("OpenVINO cannot be imported (%s): ONNX Runtime is used, slower", error)
        return "onnxruntime"
    return "openvino"
