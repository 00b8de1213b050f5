"""How large the body of a request may be, and how slowly it may come."""

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from service.errors import PayloadTooLarge, RequestTimeout
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Largest size, and the time it may take: `timeout_s`, and what the slowest rate allows."""

    max_bytes: int
    timeout_s: float
    min_bytes_per_s: int

    @classmethod
    def of(cls, settings: Settings) -> "BodyLimits":
        """Those of the settings."""
        return cls(settings.max_body_bytes, settings.body_timeout_s, settings.min_body_bytes_per_s)


def limit_body(scope: Scope, receive: Receive, *, limits: BodyLimits) -> Receive:
    """`receive` that raises as soon as the body is known to break a limit.

    It raises PayloadTooLarge, RequestTimeout, and what the protocol found wrong with the request
    after its headers.
    """
    declared = Headers(scope=scope).get("content-length", "")
    started: float | None = None
    num_bytes = 0
    is_whole = False

    async def receive_limited() -> Message:
        nonlocal started, num_bytes, is_whole
        if declared.isdigit() and int(declared) > limits.max_bytes:
            raise _too_large(limits, f"{int(declared)} bytes")
        if is_whole:
            return await receive()  # that the client has gone
        started = started or asyncio.get_running_loop().time()
        try:
            until = started + limits.timeout_s + num_bytes / limits.min_bytes_per_s
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise _too_slow(limits, num_bytes) from None
        fault = scope.get("state", {}).get("fault")
        if fault is not None:
            raise fault
        num_bytes += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        if num_bytes > limits.max_bytes:
            raise _too_large(limits, "more")
        return message

    return receive_limited


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
