"""What is served: the start of every model, reloads, failure, and the end."""

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum

from service.errors import ReloadRefused, ServiceError, UnknownModel
from service.image_decoder import ImageDecoder
from service.metrics import Metrics
from service.names import did_you_mean
from service.schemas import ModelRef
from service.served_model import ServedModel, Shared
from service.settings import MIB, Settings
from service.startup import CannotStart, OpenEngine

logger = logging.getLogger(__name__)


class State(StrEnum):
    """What the service is doing; it takes requests in READY and DRAINING."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    CLOSED = "closed"


class Serving:
    """All models that are served; they share threads for decoding, its memory, and the queue.

    Args:
        settings: say where the bundles lie.
        open_engine: for a bundle.
        on_failure: called when the service cannot go on, with the reason logged and kept in
            `failure`; the process should end.

    Raises:
        ValueError: a bundle is missing or damaged.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics,
        open_engine: OpenEngine,
        on_failure: Callable[[], None],
    ) -> None:
        self.state = State.LOADING
        self.failure: str | None = None
        self._metrics = metrics
        self._on_failure = on_failure
        self._decoder = ImageDecoder(settings, metrics=metrics)
        shared = Shared(
            settings,
            metrics,
            self._decoder,
            open_engine,
            depth_of_all=lambda: sum(model.detector.depth for model in self.models),
            on_failure=self._fail,
        )
        self.models = [ServedModel(place, shared) for place in settings.bundle_places]
        self._turn = asyncio.Lock()
        self._reloads: set[asyncio.Task[ModelRef]] = set()
        metrics.ready.set_function(lambda: self.state is State.READY)

    @property
    def names(self) -> list[str]:
        """Of all models, in the order of the settings."""
        return [model.name for model in self.models]

    def model(self, name: str | None = None) -> ServedModel:
        """The model of a name, or the first. Raises UnknownModel."""
        if name is None:
            return self.models[0]
        for model in self.models:
            if model.name == name:
                return model
        known = ", ".join(map(repr, self.names))
        raise UnknownModel(
            f"no model {name[:100]!r}: {did_you_mean(name, self.names)}served here: {known}"
        )

    async def start(self) -> None:
        """Start every engine, one after the other; where one cannot be started, fail."""
        budget_mib = self._decoder.budget_bytes // MIB
        logger.info("images may take %d MiB while they are decoded", budget_mib)
        try:
            for model in self.models:
                await model.start()
        except CannotStart as error:
            self._fail(str(error))
        if self.state is State.LOADING:
            self.state = State.READY

    def begin_reload(self, name: str | None = None) -> asyncio.Task[ModelRef]:
        """Have the bundle that lies there now take the place of the one that is served.

        It is checked, opened, tried and warmed up beside the old one, which serves on, and for good
        if the new one fails in that. The task gives the model that serves then, and waits for its
        turn and until the old one has answered what it had admitted. It raises ReloadRefused where
        nothing can be reloaded, which is logged.

        Raises:
            UnknownModel: there is none of that name.
        """
        task = asyncio.create_task(self._reload(self.model(name)))
        self._reloads.add(task)
        task.add_done_callback(self._end_reload)
        return task

    def reload_all(self) -> None:
        """Begin to reload every model, one after the other."""
        for name in self.names:
            self.begin_reload(name)

    def drain(self) -> None:
        """Turn readiness red; requests are still taken until `close`."""
        if self.state in (State.LOADING, State.READY):
            self.state = State.DRAINING

    def abort(self, error: ServiceError) -> None:
        """Answer every request with an error and take no more."""
        for model in self.models:
            model.abort(error)

    async def close(self) -> None:
        """Refuse what comes, finish what was admitted, release the engines."""
        self.drain()
        for task in self._reloads:
            task.cancel()
        await asyncio.gather(*(model.close() for model in self.models))
        if self.state is not State.FAILED:
            self.state = State.CLOSED
        self._decoder.shutdown()

    async def _reload(self, model: ServedModel) -> ModelRef:
        async with self._turn:
            name = model.name
            try:
                self._require_ready()
                new = await model.successor()
                if self.state is not State.READY:
                    await new.close()
                self._require_ready()
            except CannotStart as error:
                logger.error("the bundle is not reloaded, and the one before serves on: %s", error)
                self._metrics.reloads.labels(name, "refused").inc()
                raise ReloadRefused(f"the bundle before serves on: {error}") from error
            self._metrics.reloads.labels(new.name, "swapped").inc()
            await model.swap(new)
            return new.model_ref

    def _require_ready(self) -> None:
        if self.state is not State.READY:
            raise CannotStart(f"the service is {self.state}")

    def _end_reload(self, task: asyncio.Task[ModelRef]) -> None:
        self._reloads.discard(task)
        if not task.cancelled():
            task.exception()  # was logged; whoever waits for the task is told as well

    def _fail(self, message: str) -> None:
        if self.failure is None:
            logger.error("cannot serve: %s", message)
            self.failure = message
            self.state = State.FAILED
            self._on_failure()
