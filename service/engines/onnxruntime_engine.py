"""ONNX Runtime on the CPU: the portable engine, and the oracle for every other one."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_native

from bundle.manifest import REMEDY, Manifest
from service.cores import allowed_cores
from service.engines.base import (
    EngineInfo,
    RawOutput,
    check_names,
    checked,
    choose_precision,
    graph_path,
    reason,
)
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
        """Load `graph` of the bundle in `directory`; `threads` None takes one for each core that
        the process may use.

        Raises:
            ValueError: the bundle has no such graph, the graph does not load, or its inputs and
                outputs are not those of the manifest.
        """
        path = graph_path(directory, manifest, graph)
        threads = threads or allowed_cores()
        self._session = _open_session(path, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        check_names(path, "inputs", manifest.inputs, [node.name for node in inputs])
        check_names(path, "outputs", manifest.outputs, [node.name for node in outputs])
        self.name = manifest.name
        self.max_batch_size = manifest.max_batch_size
        precision = choose_precision(manifest, ("fp32", "int8"))
        self.info = EngineInfo("onnxruntime", precision, graph, threads, streams=1)

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`."""
        inputs = {"images": images, "padding_mask": padding_mask}
        try:
            output = RawOutput(*self._session.run(RawOutput._fields, inputs))
        except RUNTIME_ERRORS as error:
            raise EngineFailure(
                f"ONNX Runtime failed on {images.shape}: {reason(error)}"
            ) from error
        return checked(output, images.shape)

    def close(self) -> None:
        """See `Engine.close`."""
        del self._session


def _open_session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; warnings are about fusions that did not apply
    # Spinning threads answer sooner but hold every core while they wait, which starves the
    # threads that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise ValueError(
            f"{path}: ONNX Runtime cannot load it ({reason(error)}); {REMEDY}"
        ) from error
