"""The served models: their start, reloads, failure and end."""

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum

from engines.decoders import open_decoder
from service.client_memory import ClientMemory
from service.errors import NotReady, ReloadRefused, ServiceError, UnknownModel
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
    """All served models; they share the threads and memory for decoding, and the queue.

    Args:
        settings: they name the bundles.
        memory: what each client may use.
        open_engine: opens the engine of a bundle.
        on_failure: called when the service cannot go on, with the reason logged and kept in
            `failure`; the process should end.
        on_ready: called when all models were started, and when one was replaced.

    Raises:
        ValueError: a bundle is missing or damaged, or the settings' decoder cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics,
        memory: ClientMemory,
        open_engine: OpenEngine,
        on_failure: Callable[[], None],
        on_ready: Callable[[], None],
    ) -> None:
        self.state = State.LOADING
        self.failure: str | None = None
        self._metrics = metrics
        self._on_failure = on_failure
        self._on_ready = on_ready
        decode = open_decoder(settings.decoder, device=settings.device)
        self._decoder = ImageDecoder(
            settings, metrics=metrics, memory=memory, decode=decode, on_hang=self._give_up
        )
        shared = Shared(
            settings,
            metrics,
            self._decoder,
            open_engine,
            depth_of_all=lambda: sum(model.depth for model in self.models),
            on_failure=self._fail,
        )
        self.models = [ServedModel(place, shared) for place in settings.bundle_places]
        self._turn = asyncio.Lock()
        self._reloads: set[asyncio.Task[ModelRef]] = set()
        self._waiting: dict[ServedModel, asyncio.Task[ModelRef]] = {}  # reloads yet to begin
        self._is_reload_due = False  # once the models are loaded
        metrics.ready.set_function(lambda: self.state is State.READY)

    @property
    def names(self) -> list[str]:
        """The names of all models, in the order of the settings."""
        return [model.name for model in self.models]

    def model(self, name: str | None = None) -> ServedModel:
        """The model of this name; without a name, the first. Raises UnknownModel."""
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
        """Start the engines one after another; fail if one cannot be started."""
        budget_mib = self._decoder.budget_bytes // MIB
        logger.info("images may take %d MiB while they are decoded", budget_mib)
        try:
            for model in self.models:
                await model.start()
        except CannotStart as error:
            self._fail(str(error))
        if self.state is State.LOADING:
            self._on_ready()
            self.state = State.READY
            if self._is_reload_due:
                self.reload_all()

    def begin_reload(self, name: str | None = None) -> asyncio.Task[ModelRef]:
        """Replace a served bundle with the one now in its directory.

        The new bundle is checked, opened, tested and warmed up while the old one keeps serving; if
        that fails, the old one stays. Reloads run one after another; one that has yet to begin
        stands for all that are asked for until then. The task ends when the old detector has
        answered its requests, and returns the model that serves then. It raises ReloadRefused,
        after logging it, if nothing can be reloaded.

        Raises:
            UnknownModel: no model has that name.
        """
        model = self.model(name)
        task = self._waiting.get(model)
        if task is None:
            task = self._waiting[model] = asyncio.create_task(self._reload(model))
            self._reloads.add(task)
            task.add_done_callback(self._end_reload)
        return task

    def reload_all(self) -> None:
        """Begin to reload all models, one after another, or as soon as they are loaded.

        A service that is stopping passes over it: the next one reads the bundles anyway.
        """
        self._is_reload_due = self.state is State.LOADING
        if self.state is not State.READY:
            return
        for name in self.names:
            self.begin_reload(name)

    def drain(self) -> None:
        """Turn readiness red; requests are still admitted until `close`."""
        if self.state in (State.LOADING, State.READY):
            self.state = State.DRAINING

    def abort(self, error: ServiceError) -> None:
        """Answer every request with an error and admit no more."""
        for model in self.models:
            model.abort(error)
        self._decoder.abort(error)

    async def close(self) -> None:
        """Refuse new requests, finish admitted ones, release the engines."""
        self.drain()
        for task in self._reloads:
            task.cancel()
        self._waiting.clear()
        await asyncio.gather(*(model.close() for model in self.models))
        if self.state is not State.FAILED:
            self.state = State.CLOSED
        self._decoder.shutdown()

    async def _reload(self, model: ServedModel) -> ModelRef:
        async with self._turn:
            self._waiting.pop(model, None)
            name = model.name
            try:
                self._require_ready()
                new = await model.successor()
                if self.state is not State.READY:
                    await new.close()
                self._require_ready()
            except CannotStart as error:
                logger.error("the bundle was not reloaded, the old one keeps serving: %s", error)
                self._metrics.reloads.labels(name, "refused").inc()
                raise ReloadRefused(f"the old bundle keeps serving: {error}") from error
            self._metrics.reloads.labels(new.name, "swapped").inc()
            await model.swap(new)
            self._on_ready()
            return new.model_ref

    def _require_ready(self) -> None:
        if self.state is not State.READY:
            raise CannotStart(f"the service is {self.state}")

    def _end_reload(self, task: asyncio.Task[ModelRef]) -> None:
        self._reloads.discard(task)
        if not task.cancelled():
            task.exception()  # already logged, and raised for anyone awaiting the task

    def _give_up(self, message: str) -> None:
        """Give up the service, as its threads do not come back."""
        self.abort(NotReady("the decoder failed; try again soon", retry_after_s=5))
        self._fail(message)

    def _fail(self, message: str) -> None:
        if self.failure is None:
            logger.error("cannot serve: %s", message)
            self.failure = message
            self.state = State.FAILED
            self._on_failure()
