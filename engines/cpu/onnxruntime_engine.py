"""ONNX Runtime: the portable engine on the CPU, and the reference for every other engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_native

from bundle.layout import HALF_FORM, INPUTS, OUTPUTS, STANDARD_FORM
from bundle.manifest import REMEDY, Bundle
from bundle.postprocess import RawOutput
from bundle.tensorrt_plan import GPU_BATCH_SIZE
from engines.base import (
    EngineFailure,
    EngineInfo,
    check_names,
    choose_precision,
    float_type_of,
    reason,
    remedy,
)
from engines.cores import allowed_cores

# ONNX Runtime's own exceptions have no common base, and newer versions add some. The other two are
# what unknown C++ exceptions become.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(ort_native).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    RuntimeError,
    MemoryError,
)


class Provider(NamedTuple):
    """An execution provider of ONNX Runtime, with its options."""

    name: str
    options: dict[str, str]


CPU = Provider("CPUExecutionProvider", {})


class OnnxRuntimeEngine:
    """A bundle's ONNX graph in an ONNX Runtime session."""

    largest_batches = ()
    gpu_memory_bytes = 0  # ONNX Runtime does not report it, and takes more as needed
    runs_at_once = 1

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        graph: str = STANDARD_FORM,
        providers: Sequence[Provider] = (CPU,),
    ) -> None:
        """Load a graph of the bundle.

        Args:
            threads: on the CPU; None for one per core that the process may use.
            graph: the form of the graph.
            providers: each runs the nodes that the ones before cannot; the CPU is always last.

        Raises:
            ValueError: the bundle has no such graph, the graph does not load, its inputs and
                outputs do not match the manifest, or the first provider does not start.
        """
        path, manifest = bundle.graph(graph), bundle.manifest
        threads = threads or allowed_cores()
        _require_available(providers)
        self._session = _open_session(path, threads, providers)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        check_names(path, "inputs", specs=manifest.inputs, names=[node.name for node in inputs])
        check_names(path, "outputs", specs=manifest.outputs, names=[node.name for node in outputs])
        self.name = manifest.name
        on_cpu = providers[0] == CPU
        self.max_batch_size = manifest.max_batch_size if on_cpu else GPU_BATCH_SIZE
        precision: str = manifest.precision
        if graph != HALF_FORM:
            precision = choose_precision(manifest, ("fp32", "int8"))
        runtime = "onnxruntime" if on_cpu else f"onnxruntime {providers[0].name}"
        self.info = EngineInfo(
            runtime, precision, float_type_of(precision, graph), graph, threads, streams=1
        )

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`."""
        inputs = dict(zip(INPUTS, (images, padding_mask), strict=True))
        try:
            return RawOutput(*self._session.run(OUTPUTS, inputs))
        except RUNTIME_ERRORS as error:
            raise EngineFailure(
                f"ONNX Runtime failed on {images.shape}: {reason(error)}"
            ) from error

    def close(self) -> None:
        """See `Engine.close`."""
        del self._session


def _require_available(providers: Sequence[Provider]) -> None:
    available = ort.get_available_providers()
    missing = [provider.name for provider in providers if provider.name not in available]
    if missing:
        raise ValueError(
            f"ONNX Runtime {ort.__version__} has no {' and no '.join(missing)}, only {available}; "
            "install onnxruntime-gpu instead of onnxruntime, or choose another DETR_ENGINE"
        )


def _open_session(path: Path, threads: int, providers: Sequence[Provider]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only; warnings are about fusions that did not apply
    # Spinning threads react sooner but occupy every core while they wait, which starves the threads
    # that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = list(map(tuple, providers))
    try:
        session = ort.InferenceSession(str(path), options, providers=wanted, enable_fallback=0)
    except RUNTIME_ERRORS as error:
        otherwise = (
            REMEDY if providers[0] == CPU else "install what is missing, or choose another engine"
        )
        raise ValueError(
            f"{path}: ONNX Runtime cannot load it ({reason(error)}); {remedy(error, otherwise)}"
        ) from error
    used = session.get_providers()
    if used[0] != providers[0].name:  # it continues without, and says why on stderr only
        raise ValueError(
            f"{providers[0].name} did not start, and {used[0]} took its place; the lines above say "
            "which library or driver is missing; install it, or choose another DETR_ENGINE"
        )
    return session
