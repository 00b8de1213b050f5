"""Images from bytes to the engine's output: decode, resize, batch, run."""

import asyncio
import logging
from collections.abc import Hashable, Sequence
from enum import StrEnum
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bundle.detect import Found
from bundle.known_answers import Errors
from bundle.manifest import Bundle
from bundle.postprocess import ImageOutput
from bundle.preprocess import (
    pad_batch,
    resized_size,
)
from engines.base import Engine, EngineInfo
from engines.load import GpuOptions, open_engine
from engines.self_check import require_known_answers
from service.batching.batcher import BatchReport, DynamicBatcher
from service.batching.ticket import Ticket
from service.errors import NotReady
from service.image_decoder import ImageDecoder
from service.metrics import Metrics, Stage, Stopwatch
from service.schemas import ModelRef
from service.settings import Settings
from service.uploads import Upload

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]


class State(StrEnum):
    """What the detector is doing; it takes requests in READY and DRAINING."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"


class _Batch(NamedTuple):
    images: Pixels  # (B, H, W, 3)
    padding_mask: npt.NDArray[np.bool_]  # (B, H, W)


class Detector:
    """One bundle being served: its engine, its batcher and what decodes for it."""

    def __init__(self, bundle: Bundle, settings: Settings, *, metrics: Metrics) -> None:
        self.manifest = bundle.manifest
        self.model_ref = ModelRef.from_manifest(self.manifest)
        self.state = State.LOADING
        self._bundle = bundle
        self._settings = settings
        self._metrics = metrics
        self.decoder = ImageDecoder(settings, metrics=metrics)
        self._engine: Engine | None = None
        self._batcher: DynamicBatcher[Pixels, _Batch, ImageOutput] | None = None
        metrics.queue_depth.set_function(lambda: self._batcher.depth if self._batcher else 0)
        metrics.ready.set_function(lambda: self.state is State.READY)

    async def start(self, engine: Engine | None = None) -> None:
        """Open the bundle's engine, unless one is given, try it, warm it up and take requests.

        Raises:
            ValueError: the bundle does not load, or the engine does not give its known answers.
            EngineFailure: the engine cannot run.
        """
        if engine is None:
            engine = await asyncio.to_thread(open_served, self._bundle, self._settings)
        self._engine = engine
        await asyncio.to_thread(self._prove, engine)
        await asyncio.to_thread(self._warm_up, engine)
        if self.manifest.batches == "equal_shapes":
            logger.warning(
                "only images of equal shape share a batch: export did not find that padding "
                "changes no answer of this bundle; make it anew with `make export`"
            )
        for sentence in self.manifest.assumed:
            logger.warning("assumed when the weights were converted: %s", sentence)
        self._metrics.engine.labels(*engine.info).set(1)
        self._metrics.gpu_memory.set(engine.gpu_memory_bytes)
        self._batcher = DynamicBatcher(
            self._assemble,
            partial(_run, engine),
            max_batch_size=self.max_batch_size,
            max_queue=self._settings.max_queue,
            on_batch=self._record,
        )
        self.state = State.READY

    @property
    def max_batch_size(self) -> int:
        """The least of what the engine (the bundle, until there is one) and the settings allow."""
        limit = self._engine.max_batch_size if self._engine else self.manifest.max_batch_size
        return min(limit, self._settings.max_batch_size or limit)

    @property
    def engine_info(self) -> EngineInfo | None:
        """What runs the bundle, once it is opened."""
        return self._engine.info if self._engine else None

    def admit(self, num_images: int) -> Ticket[Pixels, ImageOutput]:
        """Reserve places for the images of a request.

        Raises:
            NotReady: loading or closed.
            Overloaded: no room, or the deadline would pass before they are run.
        """
        if self._batcher is None:
            raise NotReady("the model is still loading; try again soon", retry_after_s=1)
        return self._batcher.admit(num_images, deadline_s=self._settings.deadline_s)

    async def detect(
        self, uploads: Sequence[Upload], stopwatch: Stopwatch, *, client: Hashable = None
    ) -> list[Found]:
        """Run the model on the images of one request; clients take turns in decoding.

        Raises:
            InvalidImage, UnsupportedMediaType, ImageTooLarge: names the first bad image; none is
                run.
            NotReady, Overloaded, DeadlineExceeded, EngineFailure: see the batcher.
        """
        with self.admit(len(uploads)) as ticket:
            with stopwatch.stage(Stage.DECODE):
                prepared = await self.decoder.prepare(
                    uploads, self.manifest.preprocess, client=client, deadline=ticket.deadline
                )
            pixels = [image for image, _ in prepared]
            buckets = [self._bucket(image) for image in pixels]
            outputs = await ticket.run(pixels, buckets)
            stopwatch.seconds[Stage.QUEUE] = ticket.wait_s
            stopwatch.seconds[Stage.INFER] = ticket.run_s
        self._metrics.images.inc(len(uploads))
        return [
            Found(output, geometry) for output, (_, geometry) in zip(outputs, prepared, strict=True)
        ]

    def drain(self) -> None:
        """Turn readiness red; requests are still taken until `close`."""
        if self.state is State.READY:
            self.state = State.DRAINING

    async def close(self) -> None:
        """Refuse what comes, finish what was admitted, release the engine."""
        self.drain()
        if self._batcher is not None:
            await self._batcher.close()
        self.state = State.CLOSED
        self.decoder.shutdown()
        if self._engine is not None:
            self._engine.close()

    # --- batching

    def _assemble(self, images: list[Pixels]) -> _Batch:
        batch = _Batch(*pad_batch(images, self.manifest.preprocess.min_side))
        num_pixels = sum(image.shape[0] * image.shape[1] for image in images)
        self._metrics.padding_ratio.observe(1 - num_pixels / batch.padding_mask.size)
        return batch

    def _bucket(self, image: Pixels) -> Hashable:
        height, width = image.shape[:2]
        if self.manifest.batches == "equal_shapes":
            return height, width
        return bucket(height, width, short_side=self.manifest.preprocess.short_side)

    def _record(self, report: BatchReport) -> None:
        self._metrics.batch_size.observe(report.size)
        self._metrics.batch_seconds.observe(report.run_s)
        self._metrics.engine_failures.inc(report.num_failed)
        for wait_s in report.waits_s:
            self._metrics.batch_wait_seconds.observe(wait_s)

    # --- the engine

    def _prove(self, engine: Engine) -> None:
        """Refuse an engine that does not give the bundle's known answers; see `engines`."""
        outcomes = require_known_answers(engine, self._bundle)
        for name in Errors._fields:
            ratio = max(getattr(outcome.ratios, name) for outcome in outcomes)
            self._metrics.selftest_error.labels(name).set(ratio)
        self._metrics.selftest_passed.set(1)
        logger.info("the engine gives the %d known answers of the bundle", len(outcomes))

    def _warm_up(self, engine: Engine) -> None:
        """Run once alone and once in a batch, at the size of a 4:3 photograph."""
        preprocess = self.manifest.preprocess
        height, width = resized_size(
            3, 4, short_side=preprocess.short_side, long_side=preprocess.long_side
        )
        image = np.zeros((height, width, 3), np.uint8)
        for batch_size in {1, min(2, self.max_batch_size)}:
            engine.run(*pad_batch([image] * batch_size, preprocess.min_side))
        info = ", ".join(f"{name} {value}" for name, value in engine.info._asdict().items())
        logger.info("the engine %s is warm: %s", engine.name, info)


def open_served(bundle: Bundle, settings: Settings) -> Engine:
    """The engine that the settings name.

    Raises:
        ValueError: see `open_engine`.
    """
    return open_engine(
        bundle,
        engine=settings.engine,
        threads=settings.engine_threads,
        mode=settings.engine_mode,
        gpu=GpuOptions(settings.rebuild_engine, settings.cuda_graphs),
    )


def bucket(height: int, width: int, *, short_side: int) -> tuple[int, int, bool]:
    """Images are batched only with such of like height and width, so that padding stays small.

    With thirds of the short side, 4:3 and 3:2 landscapes lie one bucket apart. Images that are
    higher than the short side meet none that are wider, not by a pixel: no batch is larger than
    the largest landscape or the largest portrait, for which engines hold memory.
    """
    step_px = -(-short_side // 3)
    return -(-height // step_px), -(-width // step_px), height > short_side


def _run(engine: Engine, batch: _Batch) -> list[ImageOutput]:
    return engine.run(batch.images, batch.padding_mask).rows()
