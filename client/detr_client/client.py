"""DetrClient and AsyncDetrClient: the same client, for plain and for async programs."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, Unpack

import httpx

from detr_client.exchange import (
    Batching,
    Conversation,
    Outcome,
    Pause,
    Send,
    ask_detections,
    ask_model,
)
from detr_client.images import ImageLike
from detr_client.options import Options
from detr_client.results import ImageResult
from detr_client.retries import Retries

T = TypeVar("T")
_RETRIES = Retries()
_BATCHING = Batching()
_TIMEOUT = httpx.Timeout(60, connect=5)  # the service itself gives up on a request after 10 s


def _with_key(headers: Mapping[str, str] | None, api_key: str | None) -> httpx.Headers:
    """The headers, with the key as it stands in a file: a line in UTF-8."""
    key = {} if api_key is None else {"Authorization": f"Bearer {api_key.strip()}"}
    return httpx.Headers({**key, **(headers or {})}, encoding="utf-8")


class DetrClient:
    """Gets detections from a service, over connections that stay open.

    Args:
        base_url: address of the service, such as "http://localhost:8000".
        model: which one to use, if the service has several; by default its first.
        retries: when and how often a request is sent again.
        batching: how many images share a request.
        api_key: needed if the service asks for one.
        headers: sent with every request.
        transport, sleep: replace the network and the waiting in tests.

    Every method raises `DetrError` if the service answers with an error, and `Unreachable` if it
    does not answer.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        model: str | None = None,
        retries: Retries = _RETRIES,
        batching: Batching = _BATCHING,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | float = _TIMEOUT,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._model = model
        self._retries = retries
        self._ask = partial(ask_detections, model=model, batching=batching, retries=retries)
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=base_url,
            headers=_with_key(headers, api_key),
            timeout=timeout,
            transport=transport,
        )

    def detect(self, image: ImageLike, **options: Unpack[Options]) -> ImageResult:
        """The detections in one image; see `detect_many`."""
        (result,) = self.detect_many([image], **options)
        return result

    def detect_many(
        self,
        images: Iterable[ImageLike],
        *,
        image_ids: Sequence[int] | None = None,
        **options: Unpack[Options],
    ) -> list[ImageResult]:
        """The detections in any number of images, in their order.

        Args:
            images: paths, bytes of files, uint8 arrays (H, W[, 3 or 4]) in RGB, Pillow images.
            image_ids: of the images, for the results; by default their index.
            options: `threshold`, `num_detections`, `classes`, `nms_iou` and `tile`; see `Options`.
        """
        return self._take(self._ask(images, image_ids, options=options))

    def model(self) -> dict[str, Any]:
        """The model that is served: name, variant, version, classes and more."""
        return self._take(ask_model(self._model, self._retries))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "DetrClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, conversation: Conversation[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = conversation.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome = self._step(step)

    def _step(self, step: Send | Pause) -> Outcome:
        if isinstance(step, Pause):
            self._sleep(step.seconds)
            return None
        try:
            return self._http.request(step.method, step.path, **step.options)
        except httpx.RequestError as error:
            return error


class AsyncDetrClient:
    """`DetrClient` for async programs: the same arguments, and the same methods as coroutines."""

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        model: str | None = None,
        retries: Retries = _RETRIES,
        batching: Batching = _BATCHING,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | float = _TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._model = model
        self._retries = retries
        self._ask = partial(ask_detections, model=model, batching=batching, retries=retries)
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers=_with_key(headers, api_key),
            timeout=timeout,
            transport=transport,
        )

    async def detect(self, image: ImageLike, **options: Unpack[Options]) -> ImageResult:
        """The detections in one image; see `DetrClient.detect_many`."""
        (result,) = await self.detect_many([image], **options)
        return result

    async def detect_many(
        self,
        images: Iterable[ImageLike],
        *,
        image_ids: Sequence[int] | None = None,
        **options: Unpack[Options],
    ) -> list[ImageResult]:
        """The detections in any number of images, in their order; see `DetrClient.detect_many`."""
        return await self._take(self._ask(images, image_ids, options=options))

    async def model(self) -> dict[str, Any]:
        """The model that is served: name, variant, version, classes and more."""
        return await self._take(ask_model(self._model, self._retries))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncDetrClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _take(self, conversation: Conversation[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = conversation.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome = await self._step(step)

    async def _step(self, step: Send | Pause) -> Outcome:
        if isinstance(step, Pause):
            await self._sleep(step.seconds)
            return None
        try:
            return await self._http.request(step.method, step.path, **step.options)
        except httpx.RequestError as error:
            return error
