"""Builds TensorRT plans from ONNX graphs, for export and for the service.

The graph decides the precision: the network is strongly typed and TF32 is off, so float32 means
float32. Works with TensorRT 10 and 11, and with TensorRT-RTX, which builds without a GPU.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.atomic import write_atomically
from bundle.manifest import TensorSpec
from bundle.tensorrt_plan import ShapeProfile
from engines.gpu.tensorrt_runtime import TensorRTError, load_plugin, log_of, require
from engines.gpu.tensorrt_tensors import dims_of

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 5.0
MAX_FAULTS = 3  # shown in a message; a missing operator is reported for every layer


@dataclass(frozen=True)
class BuildOptions:
    """Options that are not in the graph.

    plugin: library with the operators that TensorRT lacks. It is loaded rather than embedded in
        the plan, as TensorRT refuses a plan that brings an operator the process already has.
    workspace_bytes: most memory that one layer may use; None leaves it to TensorRT.
    timing_cache: file that keeps kernel timings, so that a second build is faster.
    target: compute capability like "8.6" of another GPU to build for; TensorRT-RTX only.
    """

    profiles: Sequence[ShapeProfile]
    plugin: Path | None = None
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    target: str | None = None


def build_plan(
    trt: Any, graph: Path, *, inputs: Sequence[TensorSpec], options: BuildOptions
) -> bytes:
    """Build the plan of a graph; takes from seconds to many minutes.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        graph: the ONNX file; its weights may be in a file beside it.
        inputs: the inputs of the graph, with free dimensions batch, height and width.
        options: see `BuildOptions`.

    Raises:
        ValueError: the graph or the plugin does not load, or TensorRT cannot build it here; the
            message includes TensorRT's errors.
    """
    log = log_of(trt)
    log.take_errors()
    builder = trt.Builder(log)
    if options.plugin is not None:
        load_plugin(trt, options.plugin)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = _parse(trt, network, graph)
    try:
        config, cache = _configure(trt, builder, inputs, options)
        monitor = config.progress_monitor = _progress_of(trt)()
        logger.info("building a plan of %s; shape profiles: %d", graph, len(options.profiles))
        plan = bytes(
            require(trt, builder.build_serialized_network(network, config), call="the build")
        )
        del monitor, parser  # needed until here: the parser owns the weights of the network
    except TensorRTError as error:
        raise ValueError(f"{graph}: {error}{_advice(str(error))}") from error
    if options.timing_cache is not None:
        _keep_timings(options.timing_cache, cache)
    return plan


def _keep_timings(file: Path, cache: Any) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, bytes(cache.serialize()))
    except OSError as error:  # the bundle is mounted read-only
        logger.info("kernel timings cannot be kept for the next build: %s", error)


def _parse(trt: Any, network: Any, graph: Path) -> Any:
    """Parse the graph into the network; returns the parser, which owns the weights."""
    parser = trt.OnnxParser(network, log_of(trt))
    if not graph.is_file():
        raise ValueError(f"{graph}: no such graph; run `make export`")
    if not parser.parse_from_file(str(graph)):
        faults = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise ValueError(
            f"{graph}: TensorRT {trt.__version__} cannot read it: "
            f"{'; '.join(faults[:MAX_FAULTS]) or log_of(trt).take_errors()}{more}"
        )
    return parser


def _configure(
    trt: Any, builder: Any, inputs: Sequence[TensorSpec], options: BuildOptions
) -> tuple[Any, Any]:
    """The build configuration, and its timing cache or None."""
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.target is not None:
        config.num_compute_capabilities = 1
        name = f"SM{options.target.replace('.', '')}"
        if not hasattr(trt.ComputeCapability, name):
            raise ValueError(f"expected a target that {trt.__name__} builds for, got {name}")
        capability = getattr(trt.ComputeCapability, name)
        require(trt, config.set_compute_capability(capability, 0), call=f"target {options.target}")
    for profile in options.profiles:
        shapes = builder.create_optimization_profile()
        for spec in inputs:
            sizes = (dims_of(spec, size) for size in (profile.min, profile.opt, profile.max))
            shapes.set_shape(spec.name, *sizes)
        index = config.add_optimization_profile(shapes)
        require(trt, index >= 0, call=f"profile {profile}")
    cache = None
    if options.timing_cache is not None:
        known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        cache = config.create_timing_cache(known)
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            logger.info(
                "%s is for another GPU or version; starting a new one", options.timing_cache
            )
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
    return config, cache


def _progress_of(trt: Any) -> Any:
    class Progress(trt.IProgressMonitor):  # type: ignore[misc]  # the base is Any
        """Logs the progress of the build every few seconds."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._logged_at = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if now - self._logged_at >= PROGRESS_INTERVAL_S:
                self._logged_at = now
                logger.info("  %s: %d of %d", phase_name, step + 1, self._steps[phase_name])
            return True  # continue

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Progress


def _advice(message: str) -> str:
    if "memory" in message.lower():
        return "; stop other programs on the GPU, or build for smaller batches: SHAPES=..."
    return ""
