"""How large the body of a request may be, and how slowly it may arrive."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from bundle.memory import allowed_memory_bytes
from service.body_budget import COPIES, Body, BodyBudget
from service.client_memory import ClientMemory
from service.clients import counted_client
from service.errors import PayloadTooLarge, RequestTimeout
from service.freed_memory import give_memory_back
from service.settings import Settings

MEMORY_SHARE = 8  # bodies may use an eighth of the process's memory
TRIMMED_BYTES = 4 << 20  # after a body of that size, memory is given back to the system
TRIM_AFTER_S = 0.1  # once its request has ended and let go of it


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits of size and time for one body, and of memory for all bodies together.

    Attributes:
        max_bytes: the size of one body, and what to raise for a larger one.
        timeout_s: the time for one body, plus a second for every `min_bytes_per_s` received.
        budget: the memory for the bodies of all requests.
    """

    max_bytes: int
    max_bytes_setting: str
    timeout_s: float
    min_bytes_per_s: int
    budget: BodyBudget

    @classmethod
    def of(cls, settings: Settings, memory: ClientMemory) -> "BodyLimits":
        """The limits that the settings state; `memory` is that of each client."""
        client_bytes = client_body_bytes(settings)
        most_bytes = settings.body_memory_bytes or allowed_memory_bytes() // MEMORY_SHARE
        budget = BodyBudget(
            max(most_bytes, 2 * client_bytes), client_bytes=client_bytes, memory=memory
        )
        most = (
            (settings.max_body_bytes, "DETR_MAX_BODY_BYTES"),
            (memory.most_bytes // COPIES, "DETR_CLIENT_MEMORY_BYTES"),
        )
        return cls(*min(most), settings.body_timeout_s, settings.min_body_bytes_per_s, budget)


def client_body_bytes(settings: Settings) -> int:
    """Most memory for the bodies of one client: at least one body."""
    return max(settings.client_body_memory_bytes, COPIES * settings.max_body_bytes)


@contextmanager
def limited_body(scope: Scope, receive: Receive, *, limits: BodyLimits) -> Iterator[Receive]:
    """A `receive` that raises as soon as the body breaks a limit.

    It raises PayloadTooLarge, RequestTimeout or Overloaded, or the error that the HTTP protocol
    found after the headers. The state of the request gets `settle_body`, which is to be called with
    the number of bytes left of the body once it was read.
    """
    declared = Headers(scope=scope).get("content-length", "")
    body = limits.budget.open(counted_client(scope.get("client")))
    scope.setdefault("state", {})["settle_body"] = partial(limits.budget.settle, body)
    started: float | None = None
    num_bytes = 0

    async def receive_limited() -> Message:
        nonlocal started, num_bytes
        if declared.isdigit() and int(declared) > limits.max_bytes:
            raise _too_large(limits, f"{int(declared)} bytes")
        if body.is_whole:
            return await receive()  # waits for the client to disconnect
        started = started or asyncio.get_running_loop().time()
        until = started + limits.timeout_s + num_bytes / limits.min_bytes_per_s
        message = await _wait(receive, body, until)
        if message is None:
            raise limits.budget.refusal() if body.is_evicted else _too_slow(limits, num_bytes)
        fault = scope.get("state", {}).get("fault")
        if fault is not None:
            raise fault
        num_arrived = len(message.get("body", b""))
        num_bytes += num_arrived
        body.is_whole = not message.get("more_body", False)
        if num_bytes > limits.max_bytes:
            raise _too_large(limits, "more")
        limits.budget.take(body, num_arrived)
        return message

    try:
        yield receive_limited
    finally:
        limits.budget.close(body)
        if num_bytes > TRIMMED_BYTES:
            asyncio.get_running_loop().call_later(TRIM_AFTER_S, _give_memory_back_soon)


def _give_memory_back_soon() -> None:
    asyncio.get_running_loop().run_in_executor(None, give_memory_back)


async def _wait(receive: Receive, body: Body, until: float) -> Message | None:
    """The next message, or None if it did not arrive in time."""
    if body.is_evicted:
        return None
    try:
        async with asyncio.timeout_at(until) as body.wait:
            return await receive()
    except TimeoutError:
        return None
    finally:
        body.wait = None


def _too_large(limits: BodyLimits, arrived: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"expected a body of at most {limits.max_bytes} bytes, got {arrived}; "
        f"send fewer or smaller images, or raise the service's {limits.max_bytes_setting}"
    )


def _too_slow(limits: BodyLimits, num_bytes: int) -> RequestTimeout:
    return RequestTimeout(
        f"expected the whole body within {limits.timeout_s:g} s and a second for every "
        f"{limits.min_bytes_per_s} bytes, got {num_bytes} by then"
    )
