"""Every metric of the service, declared once; each app has its own registry."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from engines.base import EngineInfo
from service.errors import error_kinds
from service.score_histogram import ScoreHistogram

# From a small model on a GPU to a large one on a CPU.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PIXELS = (1e4, 1e5, 3e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7, 1e8)
_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1)
SCORE_FLOOR = 0.1  # below this the model is nearly sure that there is nothing
COUNTED_SCORE = 0.3  # lowest score of a detection that is counted for its class
LATER_S = 0.1  # longer than the clients of a batch take to come back
_SCORES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


class Stage(StrEnum):
    """The stages of a request, in order."""

    READ = "read"  # the body arrives and is parsed
    DECODE = "decode"  # bytes to resized pixels, in a thread
    QUEUE = "queue"  # waiting for the engine
    INFER = "infer"  # the engine runs its batch
    POST = "post"  # output to detections
    ENCODE = "encode"  # detections to JSON, or to a drawn image


class _Kinds:
    """The kinds of metrics; each makes one in the registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.counter = partial(Counter, registry=registry)
        self.gauge = partial(Gauge, registry=registry)
        self.histogram = partial(Histogram, registry=registry)
        self.seconds = partial(self.histogram, buckets=_SECONDS)


class Metrics:
    """The metrics; callers record on them directly."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        new = _Kinds(self.registry)
        self._declare_requests(new)
        self._declare_batches(new)
        self._declare_models(new)
        self._due: list[Callable[[], None]] = []

    def later(self, record: Callable[[], None]) -> None:
        """Record something soon, but not before answers that are due. Call it on the event loop.

        Clients that ask again at once are answered sooner, and their next images are together.
        """
        if not self._due:
            asyncio.get_running_loop().call_later(LATER_S, self.settle)
        self._due.append(record)

    def settle(self) -> None:
        """Record at once what was left for later. Call it on the event loop."""
        due, self._due = self._due, []
        for record in due:
            record()

    def _declare_requests(self, new: _Kinds) -> None:
        self.requests = new.counter(
            "detr_requests", "Requests by path and status.", ["path", "status"]
        )
        self.request_seconds = new.seconds(
            "detr_request_seconds", "Whole requests, by path.", ["path"]
        )
        self.stage_seconds = new.seconds(
            "detr_stage_seconds",
            "Stages of answered POST /detect requests; of several images, the slowest.",
            ["model", "stage"],
        )
        self.rejects = new.counter(
            "detr_rejects", "Requests answered with an error, by code.", ["code"]
        )
        for kind in error_kinds():  # Prometheus sees no rise from nothing to 1
            self.rejects.labels(kind.code)
        self.images = new.counter("detr_images", "Images answered.", ["model"])
        self.decoded = new.counter(
            "detr_decoded_images", "Image files decoded, by what decoded them.", ["decoder"]
        )
        self.image_pixels = new.histogram(
            "detr_image_pixels", "Pixels of decoded images.", buckets=_PIXELS
        )

    def _declare_batches(self, new: _Kinds) -> None:
        self.queue_depth = new.gauge(
            "detr_queue_depth", "Images admitted and not yet started.", ["model"]
        )
        self.batch_wait_seconds = new.seconds(
            "detr_batch_wait_seconds",
            "Wait of one image from joining the queue to the start of its batch.",
            ["model"],
        )
        self.batch_size = new.histogram(
            "detr_batch_size", "Images in a batch.", ["model"], buckets=_COUNTS
        )
        self.batch_seconds = new.seconds("detr_batch_seconds", "One run of the engine.", ["model"])
        self.padding_ratio = new.histogram(
            "detr_padding_ratio",
            "Fraction of a batch's pixels that is padding.",
            ["model"],
            buckets=_FRACTIONS,
        )
        self.engine_failures = new.counter(
            "detr_engine_failures", "Images that the engine failed on.", ["model"]
        )
        self.scores = ScoreHistogram(
            "detr_score",
            f"Scores of {SCORE_FLOOR} or more, by model, whatever the request's threshold.",
            bounds=_SCORES,
            registry=self.registry,
        )
        self.detections = new.counter(
            "detr_detections",
            f"Detections with a score of {COUNTED_SCORE} or more, by model and class.",
            ["model", "class_name"],
        )

    def _declare_models(self, new: _Kinds) -> None:
        self.ready = new.gauge("detr_ready", "1 while the service takes requests, else 0.")
        self.reloads = new.counter(
            "detr_reloads",
            "Reloads of the bundle, by result: swapped or refused.",
            ["model", "result"],
        )
        self.model = new.gauge(
            "detr_model_info", "A served model; always 1.", ["model", "variant", "version"]
        )
        self.engine = new.gauge(
            "detr_engine_info",
            "The engine that runs it; always 1.",
            ["model", *EngineInfo._fields],
        )
        self.selftest_passed = new.gauge(
            "detr_selftest_passed",
            "1 once the engine has given the bundle's known answers, else 0.",
            ["model"],
        )
        self.selftest_error = new.gauge(
            "detr_selftest_error_ratio",
            "The engine's largest error on the known answers, as a fraction of the tolerance.",
            ["model", "error"],
        )
        self.gpu_memory = new.gauge(
            "detr_gpu_memory_bytes", "GPU memory that the engine took at start.", ["model"]
        )

        self.graph_captures = new.counter(
            "detr_cuda_graph_captures",
            "CUDA graphs captured; a steady rise means that there are more shapes than graphs.",
            ["model"],
        )

    def expect(self, model: str) -> None:
        """Show the counters of a model's faults before there are any, so that the first is seen."""
        self.engine_failures.labels(model)
        for result in ("swapped", "refused"):
            self.reloads.labels(model, result)

    def forget(self, model: str) -> None:
        """Remove the gauges of a model that is no longer served; its counters stay."""
        for gauge in (
            *(self.queue_depth, self.model, self.engine, self.gpu_memory),
            *(self.selftest_passed, self.selftest_error),
        ):
            gauge.remove_by_labels({"model": model})


class Stopwatch:
    """The seconds that one request spent in each stage, and when each began."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}
        self.starts: dict[Stage, float] = {}  # of time.perf_counter
        self._started = time.perf_counter()

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time the body of a `with` statement."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: Stage, seconds: float, *, ended_ago_s: float = 0.0) -> None:
        """A stage that has taken so long, and ended now or some seconds ago."""
        self.seconds[stage] = seconds
        self.starts[stage] = time.perf_counter() - ended_ago_s - seconds

    def observe(self, observe: Callable[[Stage, float], None]) -> None:
        """Report every stage to a histogram."""
        for stage, seconds in self.seconds.items():
            observe(stage, seconds)

    @property
    def server_timing(self) -> str:
        """The value of the Server-Timing header, in milliseconds."""
        parts = [f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in self.seconds.items()]
        total_s = time.perf_counter() - self._started
        return ", ".join([*parts, f"total;dur={total_s * 1e3:.2f}"])
