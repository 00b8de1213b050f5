"""OpenVINO, the fastest engine on a CPU; calls the native op if it is built."""

import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov

from bundle.layout import INPUTS, OUTPUTS, PLUGIN_FORM, STANDARD_FORM
from bundle.manifest import REMEDY, Bundle, Manifest
from bundle.postprocess import RawOutput
from bundle.preprocess import pad_batch, photograph
from engines.base import (
    EngineFailure,
    EngineInfo,
    FloatType,
    Mode,
    check_names,
    choose_precision,
    reason,
)
from engines.compiled_cache import keep_compiled, read_compiled
from engines.cores import allowed_cores
from engines.cpu import openvino_graph
from engines.cpu.fastest import measure_fastest, read_fastest
from engines.cpu.signal_stack import kept_signal_stack
from plugins import library

logger = logging.getLogger(__name__)

# How C++ exceptions arrive in Python: OpenVINO's own as RuntimeError, the others are from the
# standard library.
RUNTIME_ERRORS: Final[tuple[type[Exception], ...]] = (
    *(RuntimeError, MemoryError, ValueError, IndexError, OverflowError),
)

# In bf16 with two threads or more, OpenVINO 2026.4 fails on the self-attention of the queries ("Jit
# emitter is called when the shapes are unknown"). Without these fused kernels a full-size two_stage
# takes 1% less time.
_WORKAROUNDS: Final = {"bf16": {"SNIPPETS_MODE": "DISABLE"}}

_FLOAT_TYPES: Final = {"bf16": "bf16", "f32": "fp32"}  # in our words

# How many primitives of earlier shapes each stream caches. Every image size is a new shape: over
# 1,000 random sizes of the demo, the process grew to 861 MB at the runtime's default of 5,000, to
# 310 MB at 300 and to 223 MB at 0. A repeated size took 13.5 ms at 300 and 18 ms at 0.
_CACHED_PRIMITIVES: Final = 300


class OpenVinoEngine:
    """A bundle's ONNX graph, compiled by OpenVINO for this CPU."""

    largest_batches = ()
    gpu_memory_bytes = 0

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
        core = _open_core(form)
        precisions = _precisions(core, form)
        precision = choose_precision(manifest, precisions)
        hints = _hints(precision, precisions, float_type)
        properties = _properties(threads or allowed_cores(), mode)
        try:
            model, hint = _compile_fastest(core, bundle, path, properties, hints)
            threads = model.get_property("INFERENCE_NUM_THREADS")
            streams = model.get_property("NUM_STREAMS")
            self._requests = [model.create_infer_request() for _ in range(streams)]
        except RUNTIME_ERRORS as error:
            raise ValueError(
                f"{path}: OpenVINO cannot load it ({reason(error)}); {REMEDY}"
            ) from error
        _check_ports(path, model, manifest)
        self.name = manifest.name
        self.max_batch_size = manifest.max_batch_size * streams
        floats = _FLOAT_TYPES[hint]
        self.info = EngineInfo(
            *("openvino", precision if precision == "int8" else floats, floats, form),
            threads,
            streams,
        )

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`. The batch is split evenly over the streams."""
        requests = self._requests[: len(images)]
        parts = (np.array_split(whole, len(requests)) for whole in (images, padding_mask))
        inputs = [dict(zip(INPUTS, part, strict=True)) for part in zip(*parts, strict=True)]
        failures = [
            _attempt(request.start_async, part, share_inputs=True)
            for request, part in zip(requests, inputs, strict=True)
        ]
        failures += [_attempt(request.wait) for request in requests]
        for error in filter(None, failures):
            raise EngineFailure(f"OpenVINO failed on {images.shape}: {reason(error)}") from error
        # Joining copies even a single part, which it must: the next run reuses the buffers.
        return RawOutput(
            *(
                np.concatenate([request.get_tensor(name).data for request in requests])
                for name in OUTPUTS
            )
        )

    def close(self) -> None:
        """See `Engine.close`."""
        del self._requests


def _attempt(call: Callable[..., None], *args: Any, **options: Any) -> Exception | None:
    """The exception that the runtime raised, if any, once all parts of the batch have ended."""
    try:
        call(*args, **options)
    except RUNTIME_ERRORS as error:
        return error
    return None


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


def _open_core(form: str) -> ov.Core:
    """The runtime, with the native op if the form of the graph needs it."""
    core = ov.Core()
    with kept_signal_stack():
        core.get_versions("CPU")  # loads the plugin
    if form == PLUGIN_FORM:
        name = library.openvino_extension()
        path = library.find(name)
        if path is None:
            raise ValueError(f"{name} is not built; run `make plugins`")
        try:
            core.add_extension(str(path))
        except RUNTIME_ERRORS as error:
            raise ValueError(
                f"{path}: cannot be loaded ({reason(error)}); run `make plugins`"
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


def _properties(threads: int, mode: Mode) -> dict[str, Any]:
    """The properties for OpenVINO, except for the type for floats."""
    return {
        "NUM_STREAMS": threads if mode == "throughput" else 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # decoding threads share the cores
        "CPU_RUNTIME_CACHE_CAPACITY": _CACHED_PRIMITIVES,
    }


def _check_ports(path: Path, model: ov.CompiledModel, manifest: Manifest) -> None:
    """Raise ValueError unless the inputs and outputs of a graph are those of the manifest."""
    for kind, specs, ports in (
        ("inputs", manifest.inputs, model.inputs),
        ("outputs", manifest.outputs, model.outputs),
    ):
        check_names(path, kind, specs=specs, names=[port.any_name for port in ports])


def _compile_fastest(
    core: ov.Core, bundle: Bundle, path: Path, properties: dict[str, Any], hints: Sequence[str]
) -> tuple[ov.CompiledModel, str]:
    """The graph, and the fastest of these types, which is measured at the first start.

    bf16 takes half the time of float32 on one CPU, and more than float32 on another, which only
    emulates it.
    """
    options = {hint: _options(properties, hint) for hint in hints}
    machine = f"{core.get_property('CPU', 'FULL_DEVICE_NAME')}, OpenVINO {ov.get_version()}"
    key = " ".join((machine, *map(str, options.values()), _made_from(bundle, "")))
    fastest = hints[0] if len(hints) == 1 else read_fastest(bundle.directory, key=key)
    if fastest is not None:
        return _load_or_compile(core, bundle, path, options[fastest]), fastest
    logger.info("measuring whether %s is faster on this machine ...", " or ".join(hints))
    compiled = {hint: _compile(core, path, options[hint]) for hint in hints}
    preprocess = bundle.manifest.preprocess
    batch = pad_batch([photograph(preprocess)], preprocess.min_side)
    inputs = dict(zip(INPUTS, batch, strict=True))
    runs = {
        hint: partial(model.create_infer_request().infer, inputs)
        for hint, model in compiled.items()
    }
    fastest = measure_fastest(bundle.directory, runs, key=key)
    _keep(bundle, path, compiled[fastest], fastest)
    return compiled[fastest], fastest


def _options(properties: dict[str, Any], hint: str) -> dict[str, Any]:
    """The properties with the type for floats, since OpenVINO defaults to bf16 on CPUs with it."""
    return {**properties, "INFERENCE_PRECISION_HINT": hint, **_WORKAROUNDS.get(hint, {})}


def _load_or_compile(
    core: ov.Core, bundle: Bundle, path: Path, properties: dict[str, Any]
) -> ov.CompiledModel:
    hint = properties["INFERENCE_PRECISION_HINT"]
    kept = read_compiled(bundle.directory, _kept_name(path), key=_made_from(bundle, hint))
    if kept is not None:
        try:
            return core.import_model(kept, "CPU", properties)
        except RUNTIME_ERRORS as error:
            logger.info("%s is compiled again: %s", path, reason(error))  # another CPU or OpenVINO
    compiled = _compile(core, path, properties)
    _keep(bundle, path, compiled, hint)
    return compiled


def _compile(core: ov.Core, path: Path, properties: dict[str, Any]) -> ov.CompiledModel:
    model = core.read_model(path)
    openvino_graph.prepare_graph(model, properties["INFERENCE_PRECISION_HINT"])
    return core.compile_model(model, "CPU", properties)


def _keep(bundle: Bundle, path: Path, compiled: ov.CompiledModel, hint: str) -> None:
    keep_compiled(
        bundle.directory,
        _kept_name(path),
        key=_made_from(bundle, hint),
        export=lambda: compiled.export_model().getbuffer(),
    )


def _kept_name(path: Path) -> str:
    return f"{path.stem}.openvino"


def _made_from(bundle: Bundle, hint: str) -> str:
    """What a compiled graph depends on; not threads and streams."""
    return f"{hint} {inspect.getsource(openvino_graph)} {bundle.manifest.model_dump_json()}"
