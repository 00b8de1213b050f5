"""Clients that hold connections: more than there are descriptors, or with little left unread."""

import asyncio
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from uvicorn import Config
from uvicorn.server import ServerState

from service.connections import ConnectionTable, possible_connections
from service.http_protocol import BoundedProtocol
from service.metrics import Metrics
from service.route_labels import RouteLabels
from service.settings import Settings
from service.turns import Turns
from tests.fakes import FakeClock
from tests.service.attacks import Target, many

NUM_DESCRIPTORS = 1024
NUM_SOCKETS = 2000
MOST = 30  # connections of a server in this process
HEADERS = b"POST /detect HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(scope="module")
def target(start: Callable[..., Any]) -> Iterator[Target]:
    """A service with the default settings, in a process that may open few files; we may more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    few = ("sh", "-c", f'ulimit -n {NUM_DESCRIPTORS} && exec "$@"', "sh")
    yield Target(start(launcher=few))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "begin",
    [b"", HEADERS, HEADERS + b"Content-Length: 100\r\n\r\nx"],
    ids=["idle", "unfinished headers", "unfinished bodies"],
)
def test_a_client_with_more_connections_than_descriptors_keeps_nobody_out(
    target: Target, jpeg_bytes: bytes, begin: bytes
) -> None:
    other = httpx.HTTPTransport(local_address="127.0.0.2")

    with many(target, NUM_SOCKETS, begin), httpx.Client(transport=other, timeout=60) as client:
        health = client.get(f"{target.address}/healthz").status_code
        answer = client.post(f"{target.address}/detect", content=jpeg_bytes).status_code
        growth_mb = target.growth_mb()

    log = "".join(target.process.log)
    assert (health, answer) == (200, 200)
    assert growth_mb < 100
    assert f"{NUM_DESCRIPTORS} file descriptors are allowed, which limits connections to 896" in log
    assert "the limit of open connections, 896, is reached" in log
    assert "Traceback" not in log


def test_a_new_client_does_not_wait_for_all_that_connected_before_it(target: Target) -> None:
    process, request = target.process, b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"

    process.popen.send_signal(signal.SIGSTOP)  # so that all of them arrive at the same time
    with many(target, 200, request), target.connect("127.0.0.3") as client:
        client.sendall(request)
        process.popen.send_signal(signal.SIGCONT)
        client.recv(1)
        assert target.wait_until(lambda: "client=127.0.0.3" in "".join(process.log))
        lines = [line for line in process.log if "path=/none" in line]

    (place,) = [at for at, line in enumerate(lines) if "client=127.0.0.3" in line]
    assert place < 100


class Held:
    """A connection that waits for its client."""

    def __init__(self, counted_client: str) -> None:
        self.counted_client = counted_client
        self.is_evicted = False

    def evict(self) -> None:
        self.is_evicted = True


def evicted(*ones: Held) -> list[Held]:
    return [one for one in ones if one.is_evicted]


@pytest.fixture
def table() -> ConnectionTable:
    return ConnectionTable(3)


def test_the_idle_connection_makes_room_before_an_unfinished_one(table: ConnectionTable) -> None:
    unfinished, first_idle, second_idle = Held("a"), Held("a"), Held("b")
    table.add_unfinished(unfinished)
    table.add_idle(first_idle)
    table.add_idle(second_idle)

    assert table.has_room(4, "c")

    assert evicted(unfinished, first_idle, second_idle) == [first_idle]


def test_nothing_is_closed_while_all_have_room(table: ConnectionTable) -> None:
    idle = Held("a")
    table.add_idle(idle)

    assert table.has_room(3, "b")

    assert not idle.is_evicted


def test_a_connection_waits_where_it_was_put_last(table: ConnectionTable) -> None:
    back, busy, idle = Held("a"), Held("a"), Held("b")
    for each in (back, busy, idle):
        table.add_idle(each)
    table.add_unfinished(busy)
    table.add_unfinished(back)
    table.add_idle(back)

    assert table.has_room(4, "c")
    first = evicted(back, busy, idle)
    assert table.has_room(4, "c")

    assert first == [idle]
    assert evicted(back, busy, idle) == [back, idle]
    assert not table.has_room(4, "c")  # the one that is left is the only one of its client


def test_a_full_table_says_so_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    table = ConnectionTable(3, clock=clock)

    for _ in range(30):
        table.has_room(4)
        clock.advance(1)

    assert len(caplog.messages) == 3


def test_the_client_with_most_unfinished_connections_makes_room(table: ConnectionTable) -> None:
    modest, first, second = Held("a"), Held("b"), Held("b")
    for each in (modest, first, second):
        table.add_unfinished(each)

    assert table.has_room(4, "c")

    assert evicted(modest, first, second) == [first]


def test_a_client_gets_no_place_of_one_that_would_have_fewer_then(table: ConnectionTable) -> None:
    for host in "aab":
        table.add_unfinished(Held(host))

    assert not table.has_room(4, "a")
    assert not table.has_room(4, "b")


def test_what_no_longer_waits_for_its_client_makes_no_room(table: ConnectionTable) -> None:
    ones = [Held("a"), Held("a"), Held("a")]
    for each in ones:
        table.add_unfinished(each)
        table.remove(each)

    assert not table.has_room(4, "b")


@pytest.mark.parametrize(
    ("soft", "hard", "possible", "raised_to"),
    [
        (1024, 4096, 2000, [2128]),
        (1024, 2000, 1872, [2000]),
        (100, 100, 1, [100]),
        (1024, resource.RLIM_INFINITY, 2000, [2128]),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 2000, []),
        (4096, 4096, 2000, []),
    ],
)
def test_the_limit_of_descriptors_is_raised_as_far_as_needed_and_possible(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, possible: int, raised_to: list[int]
) -> None:
    raised: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits[0]))

    assert possible_connections(2000) == possible

    assert raised == raised_to


class Watched(BoundedProtocol):
    """A connection that tells when it is lost."""

    def __init__(self, lost: asyncio.Event, **options: Any) -> None:
        super().__init__(**options)
        self._lost = lost

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost.set()


@asynccontextmanager
async def answering(text: str) -> AsyncIterator[tuple[int, ServerState, asyncio.Event]]:
    """The port of a server with this answer and little memory, and whether a client was lost."""

    async def answer() -> PlainTextResponse:
        return PlainTextResponse(text)

    app, state = FastAPI(), ServerState()
    app.get("/")(answer)
    config = Config(app=app, log_config=None)
    config.load()
    lost = asyncio.Event()
    connect = partial(
        Watched,
        lost,
        settings=Settings(write_timeout_s=0.1, keep_alive_timeout_s=0.1, _env_file=None),
        metrics=Metrics(),
        labels=RouteLabels([]),
        table=ConnectionTable(MOST),
        turns=Turns(),
        config=config,
        server_state=state,
        app_state={},
    )
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    async with await asyncio.get_running_loop().create_server(connect, sock=listener):
        yield listener.getsockname()[1], state, lost
        while state.connections:
            for connection in list(state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)


@pytest.mark.anyio
@pytest.mark.timeout(120)
async def test_a_connection_is_cut_however_little_of_its_answer_is_left_unread() -> None:
    async with answering("x" * 60_000) as (port, _, lost):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

            is_cut = await lost.wait()

    assert is_cut


@pytest.mark.anyio
async def test_pipelined_requests_wait_for_those_of_other_clients_and_give_way_to_them() -> None:
    pipelined = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100
    async with answering("hello") as (port, state, _):
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST)]
        for _, writer in clients:
            writer.write(pipelined)

        reader, other = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=("127.0.0.2", 0)
        )
        other.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        num_answered = state.total_requests

        for _, writer in [*clients, (reader, other)]:
            writer.close()

    assert answer.endswith(b"hello")
    assert num_answered < 3 * MOST
