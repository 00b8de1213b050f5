"""OpenVINO, the fastest engine on a CPU; calls the native op if it is built."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import openvino as ov

from bundle.layout import OUTPUTS, PLUGIN_FORM, STANDARD_FORM
from bundle.manifest import REMEDY, Bundle, Manifest
from bundle.postprocess import RawOutput
from engines.base import (
    EngineInfo,
    FloatType,
    Mode,
    check_names,
    choose_precision,
    reason,
    remedy,
)
from engines.cpu.openvino_compile import GraphCompiler
from engines.cpu.openvino_streams import RUNTIME_ERRORS, make_requests, run_in_parts
from engines.cpu.signal_stack import kept_signal_stack
from plugins import library

logger = logging.getLogger(__name__)

_FLOAT_TYPES: Final = {"bf16": "bf16", "f32": "fp32"}  # in our words


class OpenVinoEngine:
    """A bundle's ONNX graph, compiled by OpenVINO for this CPU."""

    largest_batches = ()
    gpu_memory_bytes = 0
    runs_at_once = 1

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        mode: Mode = "latency",
        graph: str | None = None,
        float_type: FloatType | None = None,
    ) -> None:
        """Compile a graph of the bundle, or load it compiled from the bundle's cache.

        Args:
            threads: in total; None for one per core that the process may use.
            mode: what the threads do; see `Mode`.
            graph: the form of the graph; None takes the plugin form if the native op is built,
                else the standard form.
            float_type: see `open_engine`.

        Raises:
            ValueError: the bundle has no such graph, the graph or the native op does not load, or
                inputs and outputs do not match the manifest; says what to run.
        """
        manifest = bundle.manifest
        form = graph or _best_form(manifest)
        path = bundle.graph(form)
        extension = _find_extension() if form == PLUGIN_FORM else None
        core = _open_core(extension)
        precisions = _precisions(core, form)
        precision = choose_precision(manifest, precisions)
        hints = _hints(precision, precisions, float_type)
        try:
            compiler = GraphCompiler(core, bundle, path=path, extension=extension)
            compiled = compiler.compile(hints, threads=threads, mode=mode)
            self._split = make_requests(compiled.split)
            self._whole = make_requests(compiled.whole) if compiled.whole else []
            threads = compiled.split.get_property("INFERENCE_NUM_THREADS")
        except RUNTIME_ERRORS as error:
            raise ValueError(
                f"{path}: OpenVINO cannot load it ({reason(error)}); {remedy(error, REMEDY)}"
            ) from error
        _check_ports(path, compiled.split, manifest)
        self.name = manifest.name
        parts = len(self._split) if mode == "throughput" else 1
        self.max_batch_size = manifest.max_batch_size * parts
        floats = _FLOAT_TYPES[compiled.hint]
        self.info = EngineInfo(
            *("openvino", precision if precision == "int8" else floats, floats, form),
            threads,
            len(self._split),
        )

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`."""
        num_split = len(images) - len(images) % len(self._split) if self._whole else len(images)
        parts = (self._split, slice(num_split)), (self._whole, slice(num_split, None))
        used = [
            request
            for requests, part in parts
            if len(images[part])
            for request in run_in_parts(
                requests, images=images[part], padding_mask=padding_mask[part]
            )
        ]
        # Joining copies even a single part, which it must: the next run reuses the buffers.
        return RawOutput(
            *(
                np.concatenate([request.get_tensor(name).data for request in used])
                for name in OUTPUTS
            )
        )

    def close(self) -> None:
        """See `Engine.close`."""
        del self._split, self._whole


def _best_form(manifest: Manifest) -> str:
    if PLUGIN_FORM not in manifest.graphs:
        return STANDARD_FORM
    name = library.openvino_extension()
    if library.find(name) is None:
        logger.warning(
            "%s is not built: running the graph in standard operators, which is slower; build it "
            "with `make plugins`, which needs a C++ compiler",
            name,
        )
        return STANDARD_FORM
    return PLUGIN_FORM


def _find_extension() -> Path:
    """The library with the native op; raises ValueError if it is not built."""
    name = library.openvino_extension()
    path = library.find(name)
    if path is None:
        raise ValueError(f"{name} is not built; run `make plugins`")
    return path


def _open_core(extension: Path | None) -> ov.Core:
    """The runtime, with the native op if there is a library with it."""
    core = ov.Core()
    with kept_signal_stack():
        core.get_versions("CPU")  # loads the plugin
    if extension is not None:
        try:
            core.add_extension(str(extension))
        except RUNTIME_ERRORS as error:
            raise ValueError(
                f"{extension}: cannot be loaded ({reason(error)}); run `make plugins`"
            ) from error
    return core


def _precisions(core: ov.Core, form: str) -> set[str]:
    """The precisions in which this CPU can compute a graph.

    bf16 requires the native op, which keeps coordinates in float32: those of GridSample would move
    in steps of 0.65 pixels on a level 167 wide.
    """
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    has_bf16 = form == PLUGIN_FORM and "BF16" in capabilities
    return {"fp32", "int8", "bf16"} if has_bf16 else {"fp32", "int8"}


def _hints(precision: str, possible: Collection[str], float_type: FloatType | None) -> list[str]:
    """The types in which floats may be computed, in OpenVINO's words."""
    if precision == "fp32" or "bf16" not in possible:
        return ["f32"]
    if float_type is not None:
        return [hint for hint, name in _FLOAT_TYPES.items() if name == float_type]
    return ["bf16", "f32"]


def _check_ports(path: Path, model: ov.CompiledModel, manifest: Manifest) -> None:
    """Raise ValueError unless the inputs and outputs of a graph are those of the manifest."""
    for kind, specs, ports in (
        ("inputs", manifest.inputs, model.inputs),
        ("outputs", manifest.outputs, model.outputs),
    ):
        check_names(path, kind, specs=specs, names=[port.any_name for port in ports])
