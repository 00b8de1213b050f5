"""Which timers a connection has, and when its request starts: a loop that only keeps them."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from fastapi import FastAPI
from uvicorn import Config
from uvicorn.server import ServerState

from service import routes
from service.connections import ConnectionTable
from service.http_protocol import LINGER_S, BoundedProtocol
from service.metrics import Metrics
from service.route_labels import RouteLabels
from service.settings import Settings
from service.turns import Turns

SETTINGS = Settings(
    header_timeout_s=11, keep_alive_timeout_s=22, write_timeout_s=33, _env_file=None
)


Connect = Callable[["Wire"], BoundedProtocol]


class Timer:
    """A call that is due later."""

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self.seconds = seconds
        self.is_running = True
        self._call = call

    def cancel(self) -> None:
        self.is_running = False

    def fire(self) -> None:
        self.is_running = False
        self._call()


class KeptTimers:
    """An event loop that runs nothing."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []
        self.started: list[str] = []  # the clients whose requests were
        self._soon: list[Callable[[], None]] = []

    def call_later(self, seconds: float, call: Callable[..., None], *args: Any) -> Timer:
        self.timers.append(Timer(seconds, lambda: call(*args)))
        return self.timers[-1]

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        self._soon.append(lambda: call(*args))

    def iterate(self) -> None:
        """Make the calls that are due in the next iteration."""
        calls, self._soon = self._soon, []
        for call in calls:
            call()

    def create_task(self, work: Coroutine[Any, Any, None]) -> "KeptTimers":
        self.started.append(work.cr_frame.f_locals["self"].scope["client"][0])  # type: ignore[attr-defined]
        work.close()
        return self

    def add_done_callback(self, call: Callable[..., None]) -> None:
        pass

    @property
    def running_s(self) -> list[float]:
        return [timer.seconds for timer in self.timers if timer.is_running]


class Wire:
    """A transport that remembers what was written."""

    def __init__(self, host: str = "a") -> None:
        self.host = host
        self.written = b""
        self.is_closed = False
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return (self.host, 0) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0  # every byte that is not sent is to be reported

    def get_write_buffer_size(self) -> int:
        return 100


@pytest.fixture
def loop() -> KeptTimers:
    return KeptTimers()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def connect(loop: KeptTimers, metrics: Metrics) -> Connect:
    turns = Turns()

    def connect(wire: Wire) -> BoundedProtocol:
        made = BoundedProtocol(
            settings=SETTINGS,
            metrics=metrics,
            labels=RouteLabels(routes.router.routes),
            table=ConnectionTable(10),
            turns=turns,
            config=Config(app=FastAPI(), log_config=None),
            server_state=ServerState(),
            app_state={},
            _loop=loop,
        )
        made.connection_made(wire)  # type: ignore[arg-type]
        return made

    return connect


@pytest.fixture
def connection(connect: Connect) -> BoundedProtocol:
    return connect(Wire())


@pytest.mark.parametrize(
    "its", ["aaaa", ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::"]]
)
def test_a_client_with_many_connections_lets_others_have_their_turn(
    connect: Connect, loop: KeptTimers, its: Sequence[str]
) -> None:
    for host in (*its, "b"):
        connect(Wire(host)).data_received(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    at_once = list(loop.started)
    for _ in range(4):
        loop.iterate()

    assert at_once == [its[0]]
    assert loop.started == [its[0], its[1], "b", its[2], its[3]]


def test_a_request_whose_client_has_gone_is_not_started(connect: Connect, loop: KeptTimers) -> None:
    wires = [Wire(host) for host in ("a", "lost", "closing", "b")]
    connections = [connect(wire) for wire in wires]
    for connection in connections:
        connection.data_received(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    connections[1].connection_lost(None)
    wires[2].close()
    loop.iterate()
    loop.iterate()

    assert loop.started == ["a", "b"]


def test_the_headers_have_a_time_from_their_first_byte(
    connection: BoundedProtocol, loop: KeptTimers
) -> None:
    connection.data_received(b"G")

    assert len(loop.timers) == 2
    assert loop.running_s == [11]


def test_a_request_that_is_whole_may_take_its_time(
    connection: BoundedProtocol, loop: KeptTimers
) -> None:
    connection.data_received(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")

    assert loop.running_s == []


def test_a_client_that_reads_again_is_no_longer_timed(
    connection: BoundedProtocol, loop: KeptTimers
) -> None:
    connection.pause_writing()
    before = loop.running_s

    connection.resume_writing()

    assert before == [11, 33]
    assert loop.running_s == [11]


def test_a_client_that_does_not_read_its_answer_loses_its_place_at_once(
    connection: BoundedProtocol,
) -> None:
    connection.pause_writing()

    connection.evict()

    assert connection.transport.is_aborted  # type: ignore[attr-defined]


@pytest.mark.parametrize("reason", [None, ConnectionResetError()])
def test_a_connection_that_is_lost_leaves_no_timer(
    connection: BoundedProtocol, loop: KeptTimers, reason: Exception | None
) -> None:
    connection.pause_writing()

    connection.connection_lost(reason)

    assert loop.running_s == []


def test_a_refused_client_has_a_moment_to_read_why(
    connection: BoundedProtocol, loop: KeptTimers
) -> None:
    connection.data_received(b"\0")

    assert loop.running_s == [LINGER_S]
    assert connection.transport.written.startswith(b"HTTP/1.1 400")  # type: ignore[attr-defined]


def test_a_client_whose_bytes_wait_for_us_gets_its_time_again(
    connection: BoundedProtocol, loop: KeptTimers
) -> None:
    connection.data_received(b"GET / HT")
    connection.flow.pause_reading()

    loop.timers[-1].fire()

    assert loop.running_s == [11]
    assert connection.transport.written == b""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("sent", "labels"),
    [
        (b"POST /detect?a=b HTTP/9.9\r\n\r\n", {("/detect", "400")}),
        (b"GET /%68ealthz HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 17_000, {("/healthz", "431")}),
        (b"GET /none HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 17_000, {("other", "431")}),
        (b"GET /healthz" + b"x" * 17_000, {("other", "431")}),
        (b"\0", {("other", "400")}),
    ],
)
def test_what_is_refused_before_it_is_a_request_is_counted_under_its_route(
    connection: BoundedProtocol, metrics: Metrics, sent: bytes, labels: set[tuple[str, str]]
) -> None:
    connection.data_received(sent)

    assert counted(metrics) == labels


def test_a_request_that_arrives_too_slowly_is_counted_under_its_route(
    connection: BoundedProtocol, metrics: Metrics, loop: KeptTimers
) -> None:
    connection.data_received(b"POST /detect HTTP/1.1\r\nHost: a\r\nA: ")

    loop.timers[-1].fire()

    assert counted(metrics) == {("/detect", "408")}


def counted(metrics: Metrics) -> set[tuple[str, str]]:
    """The paths and statuses that requests were counted under."""
    (family,) = metrics.requests.collect()
    return {(one.labels["path"], one.labels["status"]) for one in family.samples}
