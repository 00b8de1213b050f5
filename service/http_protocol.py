"""uvicorn's HTTP protocol, with limits on what a client may send and how long it may take.

uvicorn limits neither the size of headers nor the time for them, keeps reading while pipelined
requests wait for their answers, and reports invalid HTTP as plain text.
"""

import asyncio
import uuid
from enum import Enum
from functools import partial
from typing import Any, NoReturn, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.boundary import REQUEST_ID, log_access
from service.clients import counted_client
from service.connections import ConnectionTable, possible_connections
from service.error_bodies import last_answer
from service.errors import (
    HeadersTooLarge,
    MalformedRequest,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
)
from service.metrics import Metrics
from service.request_head import head_fault
from service.route_labels import OTHER, RouteLabels
from service.settings import Settings
from service.turns import Turns

BODY_STEP_BYTES = 4096  # parsed at a time, of a body that does not declare its length
STEP_BYTES = 512  # of headers: at most 29 of the shortest requests, of which each takes over 1 kB
LINGER_S = 2.0  # for a client to read why it was refused; closing at once would reset it


def bounded_protocol(
    settings: Settings, metrics: Metrics, *, labels: RouteLabels
) -> type[asyncio.Protocol]:
    """The class to pass to uvicorn as `http`, with the limits of the settings."""
    protocol = partial(
        BoundedProtocol,
        settings=settings,
        metrics=metrics,
        labels=labels,
        table=ConnectionTable(possible_connections(settings.max_connections)),
        turns=Turns(),
    )
    return cast(type[asyncio.Protocol], protocol)


class Reading(Enum):
    """What the next bytes on a connection are."""

    NOTHING = 0  # between requests
    HEADERS = 1
    BODY = 2


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Belongs to the event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        metrics: Metrics,
        labels: RouteLabels,
        table: ConnectionTable,
        turns: Turns,
        **uvicorn_s: Any,
    ) -> None:
        super().__init__(**uvicorn_s)
        self.timeout_keep_alive = settings.keep_alive_timeout_s  # type: ignore[assignment]
        self._settings = settings
        self._metrics = metrics
        self._labels = labels
        self._table = table
        self._turns = turns
        self._held = b""  # received, but not parsed while answers are due
        self._reading = Reading.NOTHING
        self._header_bytes = 0  # of this request, trailers included
        self._body_left = 0  # bytes to come of a body that declares its length
        self._silent_bytes = 0  # since the parser's last callback
        self._fault: ServiceError | None = None  # why a callback stopped the parser
        self._is_refused = False  # further bytes are discarded
        self._is_resuming = False  # the parser is told again what it knows of the request
        self._awaits_turn = False
        self._answered: RequestResponseCycle | None = None  # the first of pipelined requests
        self._stall_timer: asyncio.TimerHandle | None = None

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection if there is room for it."""
        super().connection_made(transport)
        self.counted_client = counted_client(self.client)
        # Without it, a client could leave up to 64 KiB unread for ever, even after `close`.
        transport.set_write_buffer_limits(high=0)
        self.flow = _Flow(self, transport)
        if self._table.has_room(len(self.connections), self.counted_client):
            self._note_wait()
            self._start_timer(self._settings.header_timeout_s)
        else:
            self._answer(self._too_many())
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._drop_answer()  # uvicorn does so only for the last request, not the one in progress
        super().connection_lost(exc)
        self._table.remove(self)
        self._turns.remove(self, client=self.counted_client)
        self._unset_keepalive_if_required()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def evict(self) -> None:
        """Close this connection, which waits for its client, to make room for another."""
        if self.transport.get_write_buffer_size():
            self._abort()
        elif self._reading is Reading.BODY:
            self._refuse(self._too_many())
        else:
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection: no request arrived in time, or only part of its headers."""
        if self.transport.is_closing():
            return
        if self._reading is not Reading.HEADERS:
            self.transport.close()
        elif self.flow.read_paused:  # we stopped reading ourselves
            self._start_timer(self._settings.header_timeout_s)
        else:
            self._refuse(
                RequestTimeout(
                    "expected all headers of the request within "
                    f"{self._settings.header_timeout_s:g} s"
                )
            )

    def pause_writing(self) -> None:
        """The client reads its answers more slowly than they are produced."""
        super().pause_writing()
        self._note_wait()
        self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._note_wait()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _watch_writing(self, num_unread: int) -> None:
        self._stall_timer = self.loop.call_later(
            self._settings.write_timeout_s, self._check_writing, num_unread
        )

    def _check_writing(self, num_unread: int) -> None:
        now_unread = self.transport.get_write_buffer_size()
        if now_unread < num_unread:
            self._watch_writing(now_unread)
        else:
            self._abort()

    def _abort(self) -> None:
        self._drop_answer()
        self.transport.abort()

    def _drop_answer(self) -> None:
        """Cancel the answer in progress, since nobody reads it."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _note_wait(self) -> None:
        """Tell the table whether the connection waits for its client, or has more than its turn."""
        if self._reading is Reading.BODY or self.flow.write_paused or self._awaits_turn:
            self._table.add_unfinished(self)
        elif self.cycle is None or self.cycle.response_complete:
            self._table.add_idle(self)
        else:
            self._table.remove(self)

    def _start_timer(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    # --- what is received

    def data_received(self, data: bytes) -> None:
        """Parse until a request has to wait for earlier answers."""
        if not self._is_refused:
            self._held += data
            self._parse_held()

    def _parse_held(self) -> None:
        data, position = memoryview(self._held), 0
        while position < len(data) and not self.pipeline and not self._is_refused:
            step = STEP_BYTES
            if self._reading is Reading.BODY:
                step = max(BODY_STEP_BYTES, self._body_left)
            self._parse(data[position : position + step])
            position += step
        self._held = b"" if self._is_refused else bytes(data[position:])
        if self._held:
            self.flow.pause_reading()

    def _parse(self, data: memoryview) -> None:
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._resume(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(self._fault or MalformedRequest(f"expected HTTP/1.1, got: {error}"))
            return
        if self._silent_bytes > self._settings.max_header_bytes:
            self._refuse(self._too_large())

    def _resume(self, data: memoryview) -> None:
        """Go on with HTTP/1.1 behind the headers of a request that asks for another protocol.

        No other is supported, so the request is answered as if it did not ask. httptools would
        skip its body and take that for the next request; a new parser expects the body.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        framing = [
            b"%s: %s\r\n" % header
            for header in self.headers
            if header[0] in (b"content-length", b"transfer-encoding")
        ]
        self._is_resuming = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
        self._is_resuming = False
        self._parse(data)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._is_resuming:
            return
        super().on_message_begin()
        self._reading = Reading.HEADERS
        self._header_bytes = 0
        self._start_timer(self._settings.header_timeout_s)

    def on_url(self, url: bytes) -> None:
        """A part of the path and the query."""
        if not self._is_resuming:
            self._count(len(url))
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer of a chunked body."""
        if not self._is_resuming:
            self._count(len(name) + len(value))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are complete, so the request can be answered."""
        if self._is_resuming:
            return
        fault = head_fault(
            self.parser.get_method(),
            self.url,
            version=self.parser.get_http_version(),
            headers=self.headers,
        )
        if fault is not None:
            self._stop_parsing(MalformedRequest(fault))
        super().on_headers_complete()
        self._reading = Reading.BODY
        self._body_left = _content_length(self.headers)
        self._unset_keepalive_if_required()
        self._note_wait()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._awaits_turn = True
        start = partial(self._start_now, cycle, app)
        self._turns.add(self, start, client=self.counted_client, loop=self.loop)

    def _start_now(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if not self.transport.is_closing():
            self._awaits_turn = False
            self._note_wait()
            self._answered = cycle
            super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """A part of the body; service.body_limits limits the time for it."""
        self._silent_bytes = 0
        self._body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self.parser.should_upgrade():
            return  # not yet: see `_resume`
        self._reading = Reading.NOTHING
        self._silent_bytes = 0
        super().on_message_complete()
        self._note_wait()

    def on_response_complete(self) -> None:
        """The answer is sent; continue with the next request."""
        super().on_response_complete()
        if not self.transport.is_closing():
            if not self.pipeline:
                self._parse_held()
                self.flow.resume_reading()
            self._note_wait()

    def _count(self, num_bytes: int) -> None:
        self._silent_bytes = 0
        self._header_bytes += num_bytes
        if self._header_bytes > self._settings.max_header_bytes:
            self._stop_parsing(self._too_large())

    def _stop_parsing(self, fault: ServiceError) -> NoReturn:
        self._fault = fault
        raise fault

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"expected at most {self._settings.max_header_bytes} bytes of path and headers, got "
            "more; send images and their ids in the body"
        )

    def _too_many(self) -> TooManyConnections:
        return TooManyConnections(f"no connection is free; the limit is {self._table.most}")

    # --- what is refused

    def _refuse(self, error: ServiceError) -> None:
        """Read no more; answer the requests already read, then close the connection."""
        self._is_refused = True
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self.cycle.keep_alive = False
        if self._reading is Reading.BODY and is_answering:
            self.cycle.scope["state"]["fault"] = error  # service.boundary raises it
            self.cycle.more_body = False
            self.cycle.message_event.set()
        elif self._reading is Reading.BODY:
            self.transport.close()  # the request already has its answer
        elif not is_answering:
            self._answer(error)
            self._linger()

    def _answer(self, error: ServiceError) -> None:
        """Send an error for input that never became a request."""
        self._is_refused = True
        is_on_its_way = self._reading is Reading.HEADERS
        label = self._labels.of_target(self.url) if is_on_its_way else OTHER
        self._metrics.requests.labels(label, str(error.status)).inc()
        self._metrics.rejects.labels(error.code).inc()
        request_id = uuid.uuid4().hex
        log_access(
            {
                "status": error.status,
                "request_id": request_id,
                "client": self.client[0] if self.client else None,
                "code": error.code,
            }
        )
        self.transport.write(last_answer(error, {REQUEST_ID: request_id}))

    def _linger(self) -> None:
        self.transport.write_eof()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(LINGER_S, self.transport.abort)


def _content_length(headers: list[tuple[bytes, bytes]]) -> int:
    """What the headers declare, which the parser has checked; 0 if they do not."""
    lengths = (value for name, value in headers if name == b"content-length")
    return next((int(value) for value in lengths if value.isdigit()), 0)


class _Flow(FlowControl):
    """Pauses reading while requests wait for earlier answers."""

    def __init__(self, protocol: BoundedProtocol, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        """Resume reading, unless earlier answers are still due."""
        if not self._protocol.pipeline and not self._protocol._held:
            super().resume_reading()
