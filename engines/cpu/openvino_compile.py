"""Compiles the graph of a bundle for OpenVINO in whatever way is fastest on this machine."""

import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import openvino as ov

from bundle.manifest import Bundle
from bundle.preprocess import pad_batch, photograph
from engines.base import Mode, reason
from engines.compiled_cache import can_keep, keep_compiled, read_compiled
from engines.cores import allowed_cores
from engines.cpu import openvino_graph
from engines.cpu.fastest import measure_fastest, read_fastest
from engines.cpu.openvino_streams import RUNTIME_ERRORS, make_requests, run_in_parts
from engines.cpu.processor import describe_processor

logger = logging.getLogger(__name__)

# In bf16 with two threads or more, OpenVINO 2026.4 fails on the self-attention of the queries ("Jit
# emitter is called when the shapes are unknown"). Without these fused kernels a full-size two_stage
# takes 1% less time.
_WORKAROUNDS: Final = {"bf16": {"SNIPPETS_MODE": "DISABLE"}}

# How many primitives of earlier shapes each stream caches. Every image size is a new shape: over
# 1,000 random sizes of the demo, the process grew to 861 MB at the runtime's default of 5,000, to
# 310 MB at 300 and to 223 MB at 0. A repeated size took 13.5 ms at 300 and 18 ms at 0.
_CACHED_PRIMITIVES: Final = 300

_HINT: Final = "INFERENCE_PRECISION_HINT"
_THREADS: Final = "INFERENCE_NUM_THREADS"
_STREAMS: Final = "NUM_STREAMS"
_LAYOUT: Final = (_THREADS, _STREAMS)

# Medians of the same work differ by less than this share on a shared machine.
_CLEARLY: Final = 0.1
# A full-size model takes longer, and gains nothing: two images at 800x1067 took 5.8 s on two
# threads together, and 6.1 s on one each.
_LAYOUT_LIMIT_S: Final = 5.0


class Layout(NamedTuple):
    """How many threads there are, and how many parts of a batch they run at a time."""

    threads: int
    streams: int


class Compiled(NamedTuple):
    """A graph, ready to run.

    Attributes:
        split: runs as many parts of a batch at a time as it has streams.
        whole: runs what is left of a batch that cannot be divided evenly; None if `split` does.
        hint: the type of floats, in OpenVINO's words.
    """

    split: ov.CompiledModel
    whole: ov.CompiledModel | None
    hint: str


class GraphCompiler:
    """Compiles one graph of a bundle, or loads it from the bundle's cache.

    Args:
        path: of the graph.
        extension: the library with the native op, if the core has one.
    """

    def __init__(
        self, core: ov.Core, bundle: Bundle, *, path: Path, extension: Path | None = None
    ) -> None:
        self._core = core
        self._bundle = bundle
        self._path = path
        self._extension = extension

    def compile(self, hints: Sequence[str], *, threads: int | None, mode: Mode) -> Compiled:
        """The graph in the fastest of these types and, for "auto", in the fastest layout.

        Which ones those are is measured at the first start.

        Args:
            threads: in total; None for one per core that the process may use, or fewer.
        """
        total = threads or allowed_cores()
        model, hint = self._fastest_type(hints, Layout(total, total if mode == "throughput" else 1))
        if mode != "auto":
            return Compiled(model, None, hint)
        limit = self._bundle.manifest.max_batch_size
        layouts = _layouts(total, may_halve=threads is None, max_streams=limit)
        if len(layouts) == 1:
            return Compiled(model, None, hint)
        return self._fastest_layout(model, hint, layouts)

    def _fastest_type(self, hints: Sequence[str], layout: Layout) -> tuple[ov.CompiledModel, str]:
        """bf16 takes half the time of float32 on one CPU, and more on another that emulates it."""
        options = {hint: _options(hint, layout) for hint in hints}
        key = self._measured_on(options)
        fastest = hints[0] if len(hints) == 1 else self._read_fastest("float type", key)
        if fastest is not None:
            return self._load_or_compile(options[fastest]), fastest
        logger.info("measuring whether %s is faster on this machine ...", " or ".join(hints))
        compiled = {hint: self._compile(options[hint]) for hint in hints}
        runs = {hint: self._run_of(model, 1) for hint, model in compiled.items()}
        fastest = measure_fastest(self._bundle.directory, runs, question="float type", key=key)
        self._keep(compiled[fastest], options[fastest])
        return compiled[fastest], fastest

    def _fastest_layout(
        self, model: ov.CompiledModel, hint: str, layouts: Mapping[str, Layout]
    ) -> Compiled:
        """The graph in the layout that takes the least time for as many images as streams.

        Args:
            model: the graph in the first layout, which has one stream.
        """
        key = self._measured_on({name: _options(hint, one) for name, one in layouts.items()})
        fastest = self._read_fastest("layout", key)
        if fastest is None and not can_keep(self._bundle.directory):
            logger.info("the layout of threads is not measured: the bundle cannot be written to")
            fastest = next(iter(layouts))
        wanted = layouts if fastest is None else [fastest]
        models = {name: self._in_layout(model, layouts[name], hint) for name in wanted}
        if fastest is None:
            logger.info("measuring the fastest of %s ...", ", ".join(layouts))
            num_images = max(layout.streams for layout in layouts.values())
            fastest = measure_fastest(
                self._bundle.directory,
                {name: self._run_of(one, num_images) for name, one in models.items()},
                question="layout",
                key=key,
                margin=_CLEARLY,
                limit_s=_LAYOUT_LIMIT_S,
            )
        is_split = layouts[fastest].streams > 1
        return Compiled(models[fastest], model if is_split else None, hint)

    def _in_layout(self, model: ov.CompiledModel, layout: Layout, hint: str) -> ov.CompiledModel:
        """The graph in another layout than the model's, unless it is the same."""
        options = _options(hint, layout)
        if all(model.get_property(name) == options[name] for name in _LAYOUT):
            return model
        return self._load_or_compile(options)

    def _read_fastest(self, question: str, key: str) -> str | None:
        return read_fastest(self._bundle.directory, question=question, key=key)

    def _run_of(self, model: ov.CompiledModel, num_images: int) -> Callable[[], object]:
        """A call that runs photographs through a graph."""
        preprocess = self._bundle.manifest.preprocess
        images, mask = pad_batch([photograph(preprocess)] * num_images, preprocess.min_side)
        return partial(run_in_parts, make_requests(model), images=images, padding_mask=mask)

    def _load_or_compile(self, options: Mapping[str, Any]) -> ov.CompiledModel:
        name, key = self._kept_name, self._made_from(options)
        kept = read_compiled(self._bundle.directory, name, key=key)
        if kept is not None:
            try:
                return self._core.import_model(kept, "CPU", options)
            except RUNTIME_ERRORS as error:  # another CPU or OpenVINO
                logger.info("%s is compiled again: %s", self._path, reason(error))
        compiled = self._compile(options)
        self._keep(compiled, options)
        return compiled

    def _compile(self, options: Mapping[str, Any]) -> ov.CompiledModel:
        model = self._core.read_model(self._path)
        openvino_graph.prepare_graph(model, options[_HINT])
        return self._core.compile_model(model, "CPU", options)

    def _keep(self, compiled: ov.CompiledModel, options: Mapping[str, Any]) -> None:
        keep_compiled(
            *(self._bundle.directory, self._kept_name),
            key=self._made_from(options),
            export=lambda: compiled.export_model().getbuffer(),
        )

    @property
    def _kept_name(self) -> str:
        return f"{self._path.stem}.openvino"

    def _made_from(self, options: Mapping[str, Any]) -> str:
        """What a compiled graph depends on; not threads and streams."""
        kept = {name: value for name, value in options.items() if name not in _LAYOUT}
        return f"{kept} {self._surroundings}"

    def _measured_on(self, ways: Mapping[str, Mapping[str, Any]]) -> str:
        """What the times of these ways, each with its options, depend on."""
        return f"{ways} {allowed_cores()} cores {self._surroundings}"

    @cached_property
    def _surroundings(self) -> str:
        """The graph, and whatever compiles and runs it."""
        extension = self._extension
        parts = (
            *(describe_processor(), self._core.get_property("CPU", "FULL_DEVICE_NAME")),
            ov.get_version(),
            hashlib.sha256(extension.read_bytes()).hexdigest() if extension else None,
            inspect.getsource(openvino_graph),
            *(self._path.name, self._bundle.manifest.model_dump_json()),
        )
        return repr(parts)


def _layouts(threads: int, *, may_halve: bool, max_streams: int) -> dict[str, Layout]:
    """The layouts to measure, by a name for each; the first is the default.

    Half the threads may be faster where two share a core. Parts of four threads suit many cores.
    """
    layouts = [Layout(threads, 1)]
    if may_halve and threads >= 4:
        layouts.append(Layout(threads // 2, 1))
    for streams in dict.fromkeys((max(2, threads // 4), threads)):
        if streams <= min(threads, max_streams):
            layouts.append(Layout(threads, streams))
    return {f"{one.streams} x {one.threads / one.streams:g} threads": one for one in layouts}


def _options(hint: str, layout: Layout) -> dict[str, Any]:
    """The properties for OpenVINO, with the type for floats: it defaults to bf16 on some CPUs."""
    return {
        _STREAMS: layout.streams,
        _THREADS: layout.threads,
        "ENABLE_CPU_PINNING": False,  # decoding threads share the cores
        "CPU_RUNTIME_CACHE_CAPACITY": _CACHED_PRIMITIVES,
        _HINT: hint,
        **_WORKAROUNDS.get(hint, {}),
    }
