"""Images from bytes to the engine's output: decode, resize, batch, run."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bundle.detect import Found
from bundle.known_answers import Errors
from bundle.manifest import Bundle, Manifest
from bundle.postprocess import ImageOutput
from bundle.preprocess import Geometry, pad_batch
from bundle.tiles import cut, merge
from engines.base import Engine, EngineInfo
from engines.guard import GuardedEngine
from service.batching.batcher import BatchReport, DynamicBatcher, Patience
from service.batching.ticket import Ticket
from service.drift import count_found
from service.errors import EngineFailure, NotReady, Overloaded, ServiceError
from service.image_decoder import ImageDecoder
from service.metrics import Metrics, Stage, Stopwatch
from service.schemas import ModelRef
from service.settings import Settings
from service.startup import OpenEngine, Started, start_engine
from service.uploads import Upload

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Answer = TypeVar("Answer")

# Detections; they take half a millisecond, or 2.3 with nms_iou, and the way to a thread and back
# takes half. A lone image was answered 0.6 ms sooner, of 46.6.
ANSWERED_AT_ONCE = 100


class _Batch(NamedTuple):
    images: Pixels  # (B, H, W, 3)
    padding_mask: npt.NDArray[np.bool_]  # (B, H, W)
    padding_ratio: float  # the share of its pixels that is padding


class Detector:
    """One bundle being served: its engine and its batcher, with the shared image decoder."""

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        *,
        name: str | None,
        metrics: Metrics,
        decoder: ImageDecoder,
        depth_of_all: Callable[[], int],
        on_failure: Callable[["Detector", str], None],
    ) -> None:
        """Open nothing yet.

        Args:
            name: the name it is served under; by default the bundle's own.
            depth_of_all: counts images admitted and not yet started, for any model.
            decoder: shared by all detectors.
            on_failure: called on the event loop with the reason when the engine is given up; it
                may call `abort`.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.model_ref = ModelRef.from_manifest(self.manifest, name=name)
        self.name = self.model_ref.name
        self._settings = settings
        self._metrics = metrics
        self.decoder = decoder
        self._depth_of_all = depth_of_all
        self._on_failure = on_failure
        self._started: Started | None = None
        self._batcher: DynamicBatcher[Pixels, _Batch, ImageOutput] | None = None
        self._is_aborted = False
        self._padding_ratios: deque[float] = deque()  # of batches that no metric has yet
        self._failures_in_row = 0  # batches that failed as a whole
        self._num_captures = 0  # of CUDA graphs, as far as they were counted
        self._probe: asyncio.Task[None] | None = None

    async def start(self, open_it: OpenEngine) -> None:
        """Open the bundle's engine, check and warm it up, then take requests.

        Raises:
            CannotStart: the engine cannot be opened, does not give its known answers, or hangs.
        """
        self._started = await start_engine(self.bundle, self._settings, open_it=open_it)
        if self.manifest.batches == "equal_shapes":
            logger.warning(
                "only images of equal shape share a batch: export did not confirm that padding "
                "leaves this bundle's answers unchanged; rebuild it with `make export`"
            )
        if self.manifest.thresholds is None:
            logger.info(
                "requests without a threshold use %s for every class: the bundle has no "
                "thresholds of its own; make evaluate BUNDLE=%s DATA= ARGS=--save-thresholds "
                "writes them",
                *(self.manifest.threshold, self.bundle.directory),
            )
        for sentence in self.manifest.assumed:
            logger.warning("assumed when the weights were converted: %s", sentence)
        factor = self._settings.hang_factor
        floor_s = max(self._settings.hang_floor_s, factor * self._started.warm_up_s)
        self._batcher = DynamicBatcher(
            self._assemble,
            partial(self._run, self._started.engine),
            max_batch_size=self.max_batch_size,
            max_queue=self._settings.max_queue,
            parts=_parts,
            runs_at_once=self._started.engine.runs_at_once,
            depth_of_all=self._depth_of_all,
            patience=Patience(factor, floor_s),
            on_batch=partial(self._record, self._started.engine),
            on_hang=partial(self._on_failure, self),
        )

    @property
    def max_batch_size(self) -> int:
        """The smaller limit: the settings' or the engine's (the bundle's until it opens)."""
        limit = (
            self._started.engine.max_batch_size if self._started else self.manifest.max_batch_size
        )
        return self._settings.limit_batch(limit)

    @property
    def engine_info(self) -> EngineInfo | None:
        """What runs the bundle; None until it is open."""
        return self._started.engine.info if self._started else None

    @property
    def depth(self) -> int:
        """Images admitted and not yet started."""
        return self._batcher.depth if self._batcher else 0

    @property
    def gpu_memory_bytes(self) -> int:
        """GPU memory that the engine took at start; 0 until it is open."""
        return self._started.engine.gpu_memory_bytes if self._started else 0

    def publish(self) -> None:
        """Set the metrics that say which model and engine serve, or are being loaded."""
        self._metrics.expect(self.name)
        self._metrics.model.labels(*self.model_ref.model_dump().values()).set(1)
        self._metrics.selftest_passed.labels(self.name).set(self._started is not None)
        if self._started is None:
            return
        engine, outcomes = self._started.engine, self._started.outcomes
        self._metrics.engine.labels(self.name, *engine.info).set(1)
        self._count_captures(engine)
        for error in Errors._fields:
            ratio = max(getattr(outcome.ratios, error) for outcome in outcomes)
            self._metrics.selftest_error.labels(self.name, error).set(ratio)

    def admit(self, num_images: int, *, client: Hashable = None) -> Ticket[Pixels, ImageOutput]:
        """Reserve places for the images of a request; clients take turns.

        Raises:
            NotReady: loading or closed.
            Overloaded: no room, or the deadline would pass before they run.
        """
        return self._require_batcher().admit(
            num_images, client=client, deadline_s=self._settings.deadline_s
        )

    def refuse_if_full(self, client: Hashable) -> None:
        """Refuse a request before anything but its client is known.

        Raises:
            NotReady, Overloaded: not even one image would be admitted.
        """
        deadline_s = self._settings.deadline_s
        self._require_batcher().check(1, client=client, deadline_s=deadline_s)

    async def detect(
        self,
        uploads: Sequence[Upload],
        stopwatch: Stopwatch,
        *,
        answer: Callable[[list[Found]], Answer],
        client: Hashable = None,
        tile_px: int | None = None,
        num_parts: int | None = None,
    ) -> Answer:
        """Run the model on the images of one request; clients take turns.

        Args:
            answer: makes what is returned of what was found; called in a thread if that is much,
                since others would wait for the event loop for tens of milliseconds.
            tile_px: side of the tiles that larger images are cut into; each counts as an image.
            num_parts: the number of parts if there are tiles: see `ImageDecoder.count_parts`.

        Raises:
            InvalidImage, UnsupportedMediaType, ImageTooLarge: names the first bad image; none is
                run.
            NotReady, Overloaded, DeadlineExceeded, EngineFailure: see the batcher.
        """
        async with AsyncExitStack() as stack:
            ticket = stack.enter_context(self.admit(num_parts or len(uploads), client=client))
            with stopwatch.stage(Stage.DECODE):
                prepared = await stack.enter_async_context(
                    self.decoder.prepared(
                        uploads,
                        self.manifest.preprocess,
                        client=client,
                        deadline=ticket.deadline,
                        tile_px=tile_px,
                    )
                )
            pixels = [image for parts in prepared for image, _ in parts]
            buckets = [bucket_of(image, self.manifest) for image in pixels]
            geometries = [parts[0][1] for parts in prepared]
            running = ticket.run(pixels, buckets)
            del prepared, pixels  # held once: by the queue, then by the batch
            outputs = await running
            stopwatch.add(Stage.QUEUE, ticket.wait_s, ended_ago_s=ticket.run_s)
            stopwatch.add(Stage.INFER, ticket.run_s)
        if sum(len(output.scores) for output in outputs) <= ANSWERED_AT_ONCE:
            found = _join(geometries, outputs, tile_px)
            self._metrics.later(partial(self._count, found))
            return answer(found)

        def join_and_answer() -> Answer:
            found = _join(geometries, outputs, tile_px)
            self._count(found)
            return answer(found)

        return await asyncio.to_thread(join_and_answer)

    async def close(self) -> None:
        """Refuse new requests, finish admitted ones, release the engine; `abort` cuts it short."""
        if self._batcher is not None:
            await self._batcher.close()
        if self._started is not None and not self._is_aborted:
            await asyncio.to_thread(self._started.engine.close)

    def abort(self, error: ServiceError) -> None:
        """Answer every request with an error, refuse new ones, and leave the engine alone."""
        self._is_aborted = True
        if self._batcher is not None:
            self._batcher.abort(error)

    def _require_batcher(self) -> DynamicBatcher[Pixels, _Batch, ImageOutput]:
        if self._batcher is None:
            raise NotReady("the model is still loading; try again soon", retry_after_s=1)
        return self._batcher

    def _count(self, found: Sequence[Found]) -> None:
        self._metrics.images.labels(self.name).inc(len(found))
        count_found(
            self._metrics,
            [one.output for one in found],
            model=self.name,
            classes=self.manifest.classes,
        )

    # --- batching

    def _assemble(self, images: list[Pixels]) -> _Batch:
        padded, mask = pad_batch(images, self.manifest.preprocess.min_side, reads_only=True)
        num_pixels = sum(image.shape[0] * image.shape[1] for image in images)
        return _Batch(padded, mask, 1 - num_pixels / mask.size)

    def _run(self, engine: Engine, batch: _Batch) -> list[ImageOutput]:
        self._padding_ratios.append(batch.padding_ratio)  # some are assembled and not run
        return engine.run(batch.images, batch.padding_mask).rows()

    def _record(self, engine: GuardedEngine, report: BatchReport) -> None:
        self._metrics.later(partial(self._observe, engine, report))
        self._count_failures(report)

    def _observe(self, engine: GuardedEngine, report: BatchReport) -> None:
        self._metrics.batch_size.labels(self.name).observe(report.size)
        while self._padding_ratios:
            ratio = self._padding_ratios.popleft()
            self._metrics.padding_ratio.labels(self.name).observe(ratio)
        self._metrics.batch_seconds.labels(self.name).observe(report.run_s)
        self._metrics.engine_failures.labels(self.name).inc(report.num_failed)
        for wait_s in report.waits_s:
            self._metrics.batch_wait_seconds.labels(self.name).observe(wait_s)
        self._count_captures(engine)

    def _count_captures(self, engine: GuardedEngine) -> None:
        num_captures = engine.num_captures
        self._metrics.graph_captures.labels(self.name).inc(num_captures - self._num_captures)
        self._num_captures = num_captures

    def _count_failures(self, report: BatchReport) -> None:
        """Test the engine after too many batches in a row failed as a whole."""
        has_failed = report.num_failed == report.size
        self._failures_in_row = self._failures_in_row + 1 if has_failed else 0
        is_probing = self._probe is not None and not self._probe.done()
        if self._failures_in_row >= self._settings.max_failures and not is_probing:
            assert self._started is not None
            self._probe = asyncio.create_task(self._try_known_image(self._started.known_image))

    async def _try_known_image(self, image: Pixels) -> None:
        """Distinguish a broken engine from images that make it fail."""
        num_failed = self._failures_in_row
        try:
            with self._require_batcher().admit(1) as ticket:
                await ticket.run([image], [bucket_of(image, self.manifest)])
        except EngineFailure as error:
            self._on_failure(
                self, f"batches failed in a row: {num_failed}, then a known image too: {error}"
            )
        except (NotReady, Overloaded):
            return  # the next failure tries again
        else:
            logger.warning(
                "batches failed in a row: %d, but a known image did not: the images are at fault",
                num_failed,
            )


def bucket_of(image: Pixels, manifest: Manifest) -> Hashable:
    """The property that images (h, w, 3) must have in common to share a batch of this bundle."""
    height, width = image.shape[:2]
    if manifest.batches == "equal_shapes":
        return height, width
    return bucket(height, width, short_side=manifest.preprocess.short_side)


def bucket(height: int, width: int, *, short_side: int) -> tuple[int, int, bool]:
    """Only images of similar height and width share a batch, so that padding stays small.

    Buckets are a third of the short side wide: 4:3 and 3:2 landscapes are one bucket apart. An
    image even a pixel taller than the short side never shares a batch with one that is wider, so
    no batch exceeds the largest landscape or portrait, for which engines reserve memory.
    """
    step_px = -(-short_side // 3)
    return -(-height // step_px), -(-width // step_px), height > short_side


def _join(
    geometries: Sequence[Geometry], outputs: Sequence[ImageOutput], tile_px: int | None
) -> list[Found]:
    """Merge the outputs for the parts of each image."""
    remaining = iter(outputs)
    found = []
    for geometry in geometries:
        windows = cut(geometry.original, tile_px)
        merged = merge(windows, list(islice(remaining, len(windows))))
        found.append(Found(merged, geometry))
    return found


def _parts(batch: _Batch) -> list[Pixels]:
    """The images of a batch without their padding, as views."""
    return [
        image[: np.count_nonzero(~mask[:, 0]), : np.count_nonzero(~mask[0])]
        for image, mask in zip(batch.images, batch.padding_mask, strict=True)
    ]
