"""The HTTP boundary: request ids, body limits, one log line per request, the last `except`."""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.body_limits import BodyLimits, limited_body
from service.error_bodies import error_body
from service.errors import ClientGone, ServiceError
from service.metrics import Metrics, Stopwatch
from service.route_labels import RouteLabels

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("service.access")

Answer = TypeVar("Answer")

REQUEST_ID = "X-Request-Id"
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PLAIN = re.compile(r"[!#-<>-~]+")  # printable ASCII but space, quote and equals sign
# Polled every few seconds, so logged at debug level.
_QUIET_PATHS = {"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}


class AnsweredRequest(NamedTuple):
    """A request that is over."""

    method: str
    route: str  # the template
    status: int
    started: float  # of time.perf_counter
    seconds: float
    headers: Mapping[str, str]
    fields: Mapping[str, Any]  # request_id, and what else stands in its log line
    stopwatch: Stopwatch | None  # of its stages, where it has any


class Boundary:
    """ASGI middleware around the whole app.

    Args:
        around_errors: middleware that the answers it makes itself have to pass, too.
        on_answer: gets every request except health checks.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        labels: RouteLabels,
        limits: BodyLimits,
        around_errors: Callable[[ASGIApp], ASGIApp] = lambda app: app,
        on_answer: Callable[[AnsweredRequest], None] | None = None,
    ) -> None:
        self._app = app
        self._around_errors = around_errors
        self._metrics = metrics
        self._labels = labels
        self._limits = limits
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP is passed on unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        scope = _as_routed(scope)
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given_id = headers.get(REQUEST_ID, "")
        request_id = given_id if _SAFE_ID.fullmatch(given_id) else uuid.uuid4().hex
        # Asked for before it is sent; if it is not, what comes next may be it or another request.
        is_body_due = _asks_before_its_body(headers)
        log_fields: dict[str, Any] = {}
        scope.setdefault("state", {})["log_fields"] = log_fields
        status = 0

        async def receive_noted() -> Message:
            nonlocal is_body_due
            is_body_due = False
            return await receive()

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marked = MutableHeaders(scope=message)
                marked[REQUEST_ID] = request_id
                marked["X-Content-Type-Options"] = "nosniff"
                # When stopping, the next request belongs to another process.
                if is_body_due or getattr(scope["app"].state, "is_stopping", False):
                    marked["Connection"] = "close"
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            with limited_body(scope, receive_noted, limits=self._limits) as receive_limited:
                await self._app(scope, receive_limited, send_marked)
        except Exception:
            logger.exception("request %s failed", request_id)
            self._metrics.rejects.labels(ServiceError.code).inc()
            if not status:
                await self._around_errors(_answer_internal_error)(scope, receive, send_marked)
        finally:
            fields = {"request_id": request_id, **log_fields}
            self._account({**scope, "method": method}, status, started=started, fields=fields)

    def _account(
        self, scope: Scope, status: int, *, started: float, fields: dict[str, Any]
    ) -> None:
        seconds = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", None)  # None if it was answered before that
        path = route or self._labels.of(scope["path"])
        self._metrics.later(partial(self._count, path, status, seconds))
        client = scope.get("client")
        record = {
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "duration_ms": round(seconds * 1e3, 2),
            "request_id": fields["request_id"],
            "client": client[0] if client else None,
            **fields,
        }
        log_access(record, logging.DEBUG if route in _QUIET_PATHS else logging.INFO)
        if self._on_answer is not None and route not in _QUIET_PATHS:
            stopwatch = scope["state"].get("stopwatch")
            headers = Headers(scope=scope)
            self._on_answer(
                AnsweredRequest(
                    scope["method"], path, status, started, seconds, headers, fields, stopwatch
                )
            )

    def _count(self, path: str, status: int, seconds: float) -> None:
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)


def _asks_before_its_body(headers: Headers) -> bool:
    """Whether a client sends the body only if it is asked to."""
    has_body = "content-length" in headers or "transfer-encoding" in headers
    return has_body and headers.get("expect", "").lower() == "100-continue"


def _as_routed(scope: Scope) -> Scope:
    """Treat HEAD as GET, whose headers it asks for, and POST /detect/ as POST /detect.

    Other methods are redirected to the path without the slash.
    """
    method, path = scope["method"], scope["path"]
    if method == "HEAD":
        return {**scope, "method": "GET"}
    is_changed = method == "POST" and path.endswith("/")
    return {**scope, "path": path.rstrip("/") or "/"} if is_changed else scope


def log_access(record: Mapping[str, object], level: int = logging.INFO) -> None:
    """The line of one request, as key=value; lines of JSON have the record itself."""
    if access_logger.isEnabledFor(level):
        line = " ".join(f"{key}={_logfmt(value)}" for key, value in record.items())
        access_logger.log(level, "%s", line, extra={"fields": record})


async def answer_unless_gone(request: Request, work: Awaitable[Answer]) -> Answer:
    """Await the work, but cancel it as soon as the client closes the connection.

    Call it once the body has been read. Raises ClientGone.
    """
    task = asyncio.current_task()
    assert task is not None
    watcher = asyncio.ensure_future(_closed(request))
    is_gone = False

    def leave(_: asyncio.Future[None]) -> None:
        nonlocal is_gone
        is_gone = True
        task.cancel()

    watcher.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and not task.uncancel():
            raise ClientGone("the client closed the connection") from None
        raise
    finally:
        watcher.remove_done_callback(leave)
        watcher.cancel()


async def _closed(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_internal_error(scope: Scope, receive: Receive, send: Send) -> None:
    error = ServiceError("an internal error; see the log for details")
    body = error_body(error, scope["path"])
    await Response(body, error.status, media_type="application/json")(scope, receive, send)


def _logfmt(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
