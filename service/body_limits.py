"""How large the body of a request may be, and how slowly it may come."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from engines.memory import allowed_memory_bytes
from service.body_budget import COPIES, Body, BodyBudget
from service.errors import PayloadTooLarge, RequestTimeout
from service.settings import Settings

MEMORY_SHARE = 8  # of what the process may use, for bodies


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Largest size, the time it may take, and the memory of all bodies together.

    Attributes:
        max_bytes: of one body.
        timeout_s: for one body, and a second more for every `min_bytes_per_s` that have come.
        budget: for the bodies of all requests.
    """

    max_bytes: int
    timeout_s: float
    min_bytes_per_s: int
    budget: BodyBudget

    @classmethod
    def of(cls, settings: Settings) -> "BodyLimits":
        """Those of the settings."""
        client_bytes = max(settings.client_body_memory_bytes, COPIES * settings.max_body_bytes)
        most_bytes = settings.body_memory_bytes or allowed_memory_bytes() // MEMORY_SHARE
        budget = BodyBudget(max(most_bytes, 2 * client_bytes), client_bytes=client_bytes)
        return cls(
            settings.max_body_bytes, settings.body_timeout_s, settings.min_body_bytes_per_s, budget
        )


@contextmanager
def limited_body(scope: Scope, receive: Receive, *, limits: BodyLimits) -> Iterator[Receive]:
    """`receive` that raises as soon as the body is known to break a limit.

    It raises PayloadTooLarge, RequestTimeout, Overloaded, and what the protocol found wrong with
    the request after its headers.
    """
    declared = Headers(scope=scope).get("content-length", "")
    client = scope.get("client")
    body = limits.budget.open(client[0] if client else None)
    started: float | None = None
    num_bytes = 0

    async def receive_limited() -> Message:
        nonlocal started, num_bytes
        if declared.isdigit() and int(declared) > limits.max_bytes:
            raise _too_large(limits, f"{int(declared)} bytes")
        if body.is_whole:
            return await receive()  # that the client has gone
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


async def _wait(receive: Receive, body: Body, until: float) -> Message | None:
    """The next message, or None where it was not to be waited for any longer."""
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
        "send fewer or smaller images, or raise the service's DETR_MAX_BODY_BYTES"
    )


def _too_slow(limits: BodyLimits, num_bytes: int) -> RequestTimeout:
    return RequestTimeout(
        f"expected the whole body within {limits.timeout_s:g} s and a second for every "
        f"{limits.min_bytes_per_s} bytes, got {num_bytes} bytes by then"
    )
