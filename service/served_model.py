"""One served model: its detector, and how a reload replaces that."""

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from bundle.detect import Found
from bundle.manifest import Bundle
from service.detector import Detector
from service.errors import NotReady, ServiceError
from service.image_decoder import ImageDecoder
from service.metrics import Metrics, Stopwatch
from service.settings import BundlePlace, Settings
from service.startup import CannotStart, OpenEngine, load_bundle
from service.uploads import Upload

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Answered(NamedTuple, Generic[Answer]):
    """The answer to a request, and the detector that found what is in it."""

    detector: Detector
    answer: Answer


class Shared(NamedTuple):
    """What all models have in common.

    Attributes:
        depth_of_all: counts images admitted and not yet started, for any model.
        on_failure: called with the reason when a model can no longer be served.
    """

    settings: Settings
    metrics: Metrics
    decoder: ImageDecoder
    open_engine: OpenEngine
    depth_of_all: Callable[[], int]
    on_failure: Callable[[str], None]


class ServedModel:
    """A model under its name: the detector that serves it now, and how the next one replaces it.

    Args:
        place: the directory of its bundle, also for reloads.
        shared: what it shares with the other models.

    Raises:
        ValueError: the bundle is missing or damaged.
    """

    def __init__(self, place: BundlePlace, shared: Shared) -> None:
        self._place = place
        self._shared = shared
        self._leaving: dict[Detector, asyncio.Task[None]] = {}  # replaced, and yet to finish
        try:
            bundle = Bundle.load(place.directory)
        except ValueError as error:
            raise ValueError(self._tell(error)) from error
        self.detector = self._detector_for(bundle)
        self._publish()

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.detector.name

    @property
    def depth(self) -> int:
        """Images admitted and not yet started, also before a reload."""
        return sum(detector.depth for detector in self._detectors)

    @property
    def gpu_memory_bytes(self) -> int:
        """GPU memory of its engines, also of those from before a reload that are yet to finish."""
        return sum(detector.gpu_memory_bytes for detector in self._detectors)

    @property
    def _detectors(self) -> tuple[Detector, ...]:
        return self.detector, *self._leaving

    async def start(self) -> None:
        """Start the first engine.

        Raises:
            CannotStart: see `Detector.start`.
        """
        try:
            await self.detector.start(self._shared.open_engine)
        except CannotStart as error:
            raise CannotStart(self._tell(error)) from error
        self._publish()

    async def detect(
        self,
        uploads: Sequence[Upload],
        stopwatch: Stopwatch,
        *,
        answer: Callable[[Detector, list[Found]], Answer],
        client: Hashable = None,
        tile_px: int | None = None,
    ) -> Answered[Answer]:
        """Run `Detector.detect` of the detector that serves at this moment."""
        num_parts = await self._shared.decoder.count_parts(uploads, tile_px)
        detector = self.detector  # a reload closes it only after the requests it has admitted
        made = await detector.detect(
            uploads,
            stopwatch,
            answer=partial(answer, detector),
            client=client,
            tile_px=tile_px,
            num_parts=num_parts,
        )
        return Answered(detector, made)

    async def successor(self) -> Detector:
        """A detector for the bundle now in the directory, started beside the one that serves.

        Raises:
            CannotStart: the bundle cannot be loaded, or its engine not started.
        """
        try:
            bundle = await load_bundle(self._place.directory, self._shared.settings)
            new = self._detector_for(bundle)
            await new.start(self._shared.open_engine)
        except CannotStart as error:
            raise CannotStart(self._tell(error)) from error
        return new

    async def swap(self, new: Detector) -> None:
        """Serve with another detector from now on; return once the old one has finished."""
        old, self.detector = self.detector, new
        self._shared.metrics.forget(old.name)
        self._publish()
        logger.info(
            "%s %s now serves instead of %s %s",
            *(new.model_ref.name, new.model_ref.version),
            *(old.model_ref.name, old.model_ref.version),
        )
        closing = self._leaving[old] = asyncio.create_task(old.close())
        closing.add_done_callback(lambda _: self._leaving.pop(old))
        await asyncio.shield(closing)  # the end of the service cancels a reload, but waits for this

    def abort(self, error: ServiceError) -> None:
        """Answer every request with an error and admit no more."""
        for detector in self._detectors:
            detector.abort(error)

    async def close(self) -> None:
        """Refuse new requests, finish admitted ones, release the engines."""
        await asyncio.gather(self.detector.close(), *self._leaving.values())

    def _publish(self) -> None:
        """Set the metrics of the detector that serves, and those of all that the model has."""
        self.detector.publish()
        metrics = self._shared.metrics
        metrics.queue_depth.labels(self.name).set_function(lambda: self.depth)
        metrics.gpu_memory.labels(self.name).set_function(lambda: self.gpu_memory_bytes)

    def _detector_for(self, bundle: Bundle) -> Detector:
        return Detector(
            bundle,
            self._shared.settings,
            name=self._place.name,
            metrics=self._shared.metrics,
            decoder=self._shared.decoder,
            depth_of_all=self._shared.depth_of_all,
            on_failure=self._give_up,
        )

    def _give_up(self, detector: Detector, message: str) -> None:
        """Give up a detector; if it is the one that serves, give up the service."""
        detector.abort(NotReady("the engine failed; try again soon", retry_after_s=5))
        if detector is self.detector:
            self._shared.on_failure(self._tell(message))
        else:
            logger.error("gave up the engine from before the reload: %s", self._tell(message))

    def _tell(self, fault: object) -> str:
        """The fault, with the model's name if there are several."""
        return f"model {self._place.name!r}: {fault}" if self._place.name else str(fault)
