"""ONNX Runtime on the CPU: the portable engine, and the oracle for every other one."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_native

from bundle.manifest import REMEDY, Manifest
from service.engines.base import RawOutput
from service.errors import EngineFailure

# ONNX Runtime's own exceptions have no common base, and their list grows with its versions.
# The other two are what C++ exceptions become that it does not know.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(ort_native).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    RuntimeError,
    MemoryError,
)


class OnnxRuntimeEngine:
    """A bundle's ONNX graph in an ONNX Runtime session."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        graph: str = "standard",
    ) -> None:
        """Load `graph` of the bundle in `directory`; `threads` None takes one per core.

        Raises:
            ValueError: the bundle has no such graph, the graph does not load, or its inputs and
                outputs are not those of the manifest.
        """
        if graph not in manifest.graphs:
            raise ValueError(
                f"{directory}: expected a graph {graph!r}, got {sorted(manifest.graphs)}; {REMEDY}"
            )
        path = directory / manifest.graphs[graph]
        self.name = manifest.name
        self.max_batch_size = manifest.max_batch_size
        self._session = _open_session(path, threads)
        for side, nodes, specs in (
            ("inputs", self._session.get_inputs(), manifest.inputs),
            ("outputs", self._session.get_outputs(), manifest.outputs),
        ):
            expected, found = sorted(s.name for s in specs), sorted(n.name for n in nodes)
            if expected != found:
                raise ValueError(f"{path}: expected {side} {expected}, got {found}; {REMEDY}")

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`."""
        inputs = {"images": images, "padding_mask": padding_mask}
        try:
            output = RawOutput(*self._session.run(RawOutput._fields, inputs))
        except RUNTIME_ERRORS as error:
            raise EngineFailure(f"ONNX Runtime failed on {images.shape}: {error}") from error
        if not (np.isfinite(output.scores).all() and np.isfinite(output.boxes).all()):
            raise EngineFailure(f"expected finite scores and boxes for {images.shape}")
        return output

    def close(self) -> None:
        """See `Engine.close`."""
        del self._session


def _open_session(path: Path, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors; warnings are about fusions that did not apply
    # Spinning threads answer sooner but hold every core while they wait, which starves the
    # threads that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise ValueError(f"{path}: ONNX Runtime cannot load it ({error}); {REMEDY}") from error
