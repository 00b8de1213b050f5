"""Loads TensorRT's Python module and the plugin, keeps its log, identifies this machine.

Nothing here builds or runs an engine. To the type checker the module is `Any`, as it is installed
only on machines with a GPU.
"""

import ctypes
import hashlib
import logging
from collections import deque
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from bundle.layout import OPERATOR
from bundle.tensorrt_plan import Fingerprint
from engines.gpu.cuda import Device
from plugins import library

logger = logging.getLogger(__name__)

REBUILD = (
    "rebuild the plan with `make export RUNTIME=tensorrt`, or set DETR_REBUILD_ENGINE=true to "
    "build it at start"
)
MIN_VERSION, END_VERSION = (10, 1), (12,)  # set_device_memory came with 10.1


class TensorRTError(RuntimeError):
    """A call of TensorRT failed; the message includes what it logged."""


def load_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        ValueError: it is not installed, one of its libraries is missing, or its version is not
            supported.
    """
    try:
        trt = import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise ValueError(
            f"TensorRT cannot be loaded ({error}); install the Python package tensorrt, of a "
            "version that fits the driver, or serve with another DETR_ENGINE"
        ) from error
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if not MIN_VERSION <= version < END_VERSION:
        raise ValueError(
            f"expected TensorRT {MIN_VERSION[0]}.{MIN_VERSION[1]} to {END_VERSION[0] - 1}, got "
            f"{trt.__version__}; install another one, or serve with another DETR_ENGINE"
        )
    return trt


@cache
def log_of(trt: Any) -> Any:
    """The process's only ILogger, as TensorRT keeps the first one it is given.

    It forwards messages to this module's log. It also keeps errors for `take_errors`, since
    TensorRT's functions just return None or False and give the reason only in the log.
    """

    class Log(trt.ILogger):  # type: ignore[misc]  # the base is Any
        """Forwards to Python's logging and keeps the last errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self._errors.append(message)
                logger.error("%s", message)
            elif severity == trt.ILogger.WARNING:
                logger.info("%s", message)
            else:
                logger.debug("%s", message)

        def take_errors(self) -> str:
            """The errors since the last call, joined."""
            errors = list(dict.fromkeys(self._errors))
            self._errors.clear()
            return "; ".join(errors) or "TensorRT gave no reason"

    return Log()


def require(trt: Any, outcome: Any, *, call: str) -> Any:
    """The outcome of a call of TensorRT.

    Raises:
        TensorRTError: it is None or False, which is how TensorRT reports failure.
    """
    if outcome is None or outcome is False:
        raise TensorRTError(f"{call} failed: {log_of(trt).take_errors()}")
    return outcome


def find_plugin() -> Path | None:
    """The library with the operator, for TensorRT 10 and 11; None if it is not built."""
    return library.find(library.TENSORRT_PLUGIN)


def load_plugin(trt: Any, path: Path | None) -> None:
    """Register the operator with TensorRT.

    Raises:
        ValueError: there is no library for this version, or it does not register the operator.
    """
    if _knows_operator(trt):
        return
    version = trt.__version__
    if path is None:
        raise ValueError(
            f"no plugin library for TensorRT {version}: expected {library.TENSORRT_PLUGIN} in "
            f"{library.FOLDER}; run `make plugins`, which needs nvcc and TensorRT's headers"
        )
    log = log_of(trt)
    log.take_errors()
    handle = trt.get_plugin_registry().load_library(str(path))
    if handle is None or not _knows_operator(trt):
        raise ValueError(
            f"{path}: TensorRT {version} finds no operator {OPERATOR} in it "
            f"({_loader_error(path) or log.take_errors()}); it was built for another version, or a "
            "library that it needs is missing; run `make plugins`"
        )


def fingerprint_of(trt: Any, device: Device, *, plugin: Path | None) -> Fingerprint:
    """What a plan built on this machine depends on."""
    return Fingerprint(
        gpu=device.name,
        compute_capability=device.compute_capability,
        tensorrt=trt.__version__,
        plugin_sha256=hashlib.sha256(plugin.read_bytes()).hexdigest() if plugin else None,
    )


def _loader_error(path: Path) -> str:
    """Why the system cannot open a library, which TensorRT itself does not report."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)
    return ""


def _knows_operator(trt: Any) -> bool:
    creators = trt.get_plugin_registry().all_creators
    return any(creator.name == OPERATOR for creator in creators)
