"""What is served: the start of its engine, how another bundle takes its place, and its end."""

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from enum import StrEnum
from typing import NamedTuple

from bundle.detect import Found
from bundle.manifest import Bundle
from service.detector import Detector
from service.errors import NotReady, ReloadRefused, ServiceError
from service.image_decoder import ImageDecoder
from service.metrics import Metrics, Stopwatch
from service.schemas import ModelRef
from service.settings import MIB, Settings
from service.startup import CannotStart, OpenEngine, load_bundle
from service.uploads import Upload

logger = logging.getLogger(__name__)


class State(StrEnum):
    """What the service is doing; it takes requests in READY and DRAINING."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    CLOSED = "closed"


class Answered(NamedTuple):
    """What was found in the images of a request, and by which detector."""

    detector: Detector
    found: list[Found]


class Serving:
    """The detector that serves now, and its successors.

    Args:
        bundle: served first; later ones are read from where the settings say.
        open_engine: for a bundle.
        on_failure: called when nothing can be served any more, with the reason logged and kept in
            `failure`; the process should end.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        *,
        metrics: Metrics,
        open_engine: OpenEngine,
        on_failure: Callable[[], None],
    ) -> None:
        self.state = State.LOADING
        self.failure: str | None = None
        self._settings = settings
        self._metrics = metrics
        self._open_engine = open_engine
        self._on_failure = on_failure
        self._decoder = ImageDecoder(settings, metrics=metrics)
        self.detector = self._detector_for(bundle)
        self._turn = asyncio.Lock()
        self._reloads: set[asyncio.Task[ModelRef]] = set()
        metrics.model.labels(*self.detector.model_ref.model_dump().values()).set(1)
        metrics.queue_depth.set_function(lambda: self.detector.depth)
        metrics.ready.set_function(lambda: self.state is State.READY)

    async def start(self) -> None:
        """Start the first engine; where it cannot be started, fail."""
        budget_mib = self._decoder.budget_bytes // MIB
        logger.info("images may take %d MiB while they are decoded", budget_mib)
        try:
            await self.detector.start(self._open_engine)
        except CannotStart as error:
            self._fail(self.detector, str(error))
            return
        self.detector.publish()
        if self.state is State.LOADING:
            self.state = State.READY

    async def detect(
        self, uploads: Sequence[Upload], stopwatch: Stopwatch, *, client: Hashable = None
    ) -> Answered:
        """See `Detector.detect`; by the detector that serves at this moment."""
        detector = self.detector  # it closes after what it has admitted, which happens next
        return Answered(detector, await detector.detect(uploads, stopwatch, client=client))

    def begin_reload(self) -> asyncio.Task[ModelRef]:
        """Have the bundle that lies there now take the place of the one that is served.

        It is checked, opened, tried and warmed up beside the old one, which serves on, and for good
        if the new one fails in that. The task gives the model that serves then, and waits for its
        turn and until the old one has answered what it had admitted. It raises ReloadRefused, or
        NotReady where nothing can be reloaded now; both are logged.
        """
        task = asyncio.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._end_reload)
        return task

    def drain(self) -> None:
        """Turn readiness red; requests are still taken until `close`."""
        if self.state in (State.LOADING, State.READY):
            self.state = State.DRAINING

    def abort(self, error: ServiceError) -> None:
        """Answer every request with an error and take no more."""
        self.detector.abort(error)

    async def close(self) -> None:
        """Refuse what comes, finish what was admitted, release the engine."""
        self.drain()
        for task in self._reloads:
            task.cancel()
        await self.detector.close()
        if self.state is not State.FAILED:
            self.state = State.CLOSED
        self._decoder.shutdown()

    def _detector_for(self, bundle: Bundle) -> Detector:
        return Detector(
            bundle,
            self._settings,
            metrics=self._metrics,
            decoder=self._decoder,
            on_failure=self._fail,
        )

    async def _reload(self) -> ModelRef:
        async with self._turn:
            new = await self._successor()
            old, self.detector = self.detector, new
            new.publish()
            logger.info(
                "%s %s serves in place of %s %s",
                *(new.model_ref.name, new.model_ref.version),
                *(old.model_ref.name, old.model_ref.version),
            )
            self._metrics.reloads.labels("swapped").inc()
            await old.close()
            return new.model_ref

    async def _successor(self) -> Detector:
        try:
            if self.state is not State.READY:
                raise CannotStart(f"the service is {self.state}")
            new = self._detector_for(await load_bundle(self._settings))
            await new.start(self._open_engine)
            if self.state is not State.READY:
                await new.close()
                raise CannotStart(f"the service is {self.state}")
        except CannotStart as error:
            logger.error("the bundle is not reloaded, and the one before serves on: %s", error)
            self._metrics.reloads.labels("refused").inc()
            raise ReloadRefused(f"the bundle before serves on: {error}") from error
        return new

    def _end_reload(self, task: asyncio.Task[ModelRef]) -> None:
        self._reloads.discard(task)
        if not task.cancelled():
            task.exception()  # was logged; whoever waits for the task is told as well

    def _fail(self, detector: Detector, message: str) -> None:
        """Give up a detector, and with the one that serves the whole service."""
        detector.abort(NotReady("the engine failed; try again soon", retry_after_s=5))
        if detector is not self.detector:
            logger.error("the engine before the reload is given up: %s", message)
        elif self.failure is None:
            logger.error("cannot serve: %s", message)
            self.failure = message
            self.state = State.FAILED
            self._on_failure()
