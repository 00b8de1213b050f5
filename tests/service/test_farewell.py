"""How the service stops: no request that has arrived is lost, and nothing holds the process."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import farewell
from service.__main__ import Server
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.breaking_service import BreakingEngine, fail
from tests.service.load import Load

Start = Callable[..., Any]  # the fixture; settings in, a Process out

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
HALF_A_REQUEST = b"POST /detect HTTP/1.1\r\nHost: test\r\nContent-Length: 9999\r\n\r\nhalf"


class Listener(socket.socket):
    """A listening port; reports when new clients should be turned away, and when it closes."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.before_turning_away: Callable[[], object] = lambda: None
        self.before_closing: Callable[[], object] = lambda: None

    def connect_to_it(self) -> socket.socket:
        return socket.create_connection(self.getsockname(), timeout=0.2)

    def setsockopt(self, *arguments: Any) -> None:
        self.before_turning_away()
        super().setsockopt(*arguments)

    def close(self) -> None:
        before_closing, self.before_closing = self.before_closing, lambda: None
        before_closing()
        super().close()


async def serve_and_stop(listener: Listener, fake_bundle: Path) -> None:
    """The whole life of a server, in this process."""
    settings = Settings(bundle=fake_bundle)
    server = Server(create_app(settings, lambda *_: FakeEngine()), settings)
    server.should_exit = True  # as soon as it has started
    await server.serve([listener])


@pytest.mark.anyio
async def test_a_client_that_the_kernel_has_connected_is_still_answered(fake_bundle: Path) -> None:
    listener = Listener()
    clients: list[socket.socket] = []
    listener.before_turning_away = lambda: clients.append(listener.connect_to_it())
    listener.before_closing = lambda: clients[0].sendall(HEALTHZ)

    await serve_and_stop(listener, fake_bundle)

    assert clients[0].recv(1000).startswith(b"HTTP/1.1 200 OK")
    clients[0].close()


@pytest.mark.anyio
async def test_a_request_on_an_idle_connection_as_the_port_closes_is_answered(
    fake_bundle: Path,
) -> None:
    listener = Listener()
    with listener.connect_to_it() as client:
        listener.before_closing = lambda: client.sendall(HEALTHZ)

        await serve_and_stop(listener, fake_bundle)

        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.anyio
async def test_a_client_that_asks_late_on_its_idle_connection_is_answered(
    fake_bundle: Path,
) -> None:
    listener = Listener()
    with listener.connect_to_it() as client:

        def ask_late() -> None:
            asyncio.get_running_loop().call_later(1, client.sendall, HEALTHZ)

        listener.before_closing = ask_late

        await serve_and_stop(listener, fake_bundle)

        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


async def serving(listener: Listener, server: Server) -> tuple[asyncio.Task[None], str]:
    """The life of a server in this process, begun until it is ready, and its address."""
    life = asyncio.create_task(server.serve([listener]))
    address = "http://{}:{}".format(*listener.getsockname())
    async with httpx.AsyncClient() as client:
        while (await client.get(f"{address}/readyz")).status_code != 200:
            pass
    return life, address


@pytest.mark.anyio
async def test_an_answer_that_a_stop_cuts_short_still_reaches_its_client(
    fake_bundle: Path, jpeg_bytes: bytes
) -> None:
    settings = Settings(bundle=fake_bundle, drain_timeout_s=0.2)
    engine, is_cut_short = FakeEngine(), asyncio.Event()
    app = create_app(settings, lambda *_: engine)

    @app.get("/last-words")
    async def last_words() -> str:
        await is_cut_short.wait()
        for _ in range(100):  # turns of the event loop
            await asyncio.sleep(0)
        return "said"

    server = Server(app, settings)
    life, address = await serving(Listener(), server)
    engine.gate.shut()
    async with httpx.AsyncClient(base_url=address) as client, asyncio.TaskGroup() as tasks:
        cut_short = tasks.create_task(client.post("/detect", content=jpeg_bytes))
        slower = tasks.create_task(client.get("/last-words"))
        await asyncio.to_thread(engine.gate.wait_for_arrival)

        server.should_exit = True
        assert (await cut_short).status_code == 503
        is_cut_short.set()
        done, _ = await asyncio.wait({slower, life}, return_when=asyncio.FIRST_COMPLETED)

    engine.gate.open()
    await life
    assert done == {slower}
    assert slower.result().json() == "said"


@pytest.mark.anyio
async def test_a_stop_does_not_wait_for_a_batch_whose_clients_have_left(
    fake_bundle: Path, jpeg_bytes: bytes
) -> None:
    settings = Settings(bundle=fake_bundle, drain_timeout_s=0.2)
    engine = FakeEngine()
    server = Server(create_app(settings, lambda *_: engine), settings)
    life, address = await serving(Listener(), server)
    engine.gate.shut()
    while engine.batch_shapes:  # arrivals of the warm-up
        engine.gate.wait_for_arrival()
        engine.batch_shapes.pop()
    async with httpx.AsyncClient(base_url=address) as client:
        leaving = asyncio.create_task(client.post("/detect", content=jpeg_bytes))
        await asyncio.to_thread(engine.gate.wait_for_arrival)
        leaving.cancel()

    server.should_exit = True
    done, _ = await asyncio.wait({life}, timeout=10)
    engine.gate.open()
    await life

    assert done == {life}


@pytest.mark.anyio
async def test_a_service_that_failed_waits_a_second_for_its_clients(
    fake_bundle: Path, jpeg_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(bundle=fake_bundle, max_failures=1, drain_timeout_s=600, body_timeout_s=600)
    engine, listener = BreakingEngine(fail), Listener()
    app = create_app(
        settings, lambda *_: engine, on_failure=lambda: setattr(server, "should_exit", True)
    )
    server = Server(app, settings)
    life, address = await serving(listener, server)
    engine.is_broken = True
    with listener.connect_to_it() as stalled:
        stalled.sendall(HALF_A_REQUEST)

        async with httpx.AsyncClient() as client, asyncio.timeout(30):
            answer = await client.post(f"{address}/detect", content=jpeg_bytes)
            await life

    assert answer.status_code == 500
    assert app.state.serving.failure.startswith("batches failed in a row: 1")
    assert "connections that did not finish within 1 s" in caplog.text


def test_a_stalled_upload_and_a_second_sigterm_do_not_hold_the_process(start: Start) -> None:
    process = start(drain_timeout_s=1)
    address = process.start()
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(HALF_A_REQUEST)
        assert httpx.get(f"{address}/healthz").status_code == 200  # what came before was read

        process.stop()
        process.stop()

        status, log = process.end()

    assert status == 0
    assert "closing the connections that did not finish within 1 s: 1" in log
    assert "Traceback" not in log


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="socket filters are Linux's")
async def test_no_client_is_let_in_only_to_be_cut_off_as_the_port_closes(fake_bundle: Path) -> None:
    listener = Listener()
    refusals: list[BaseException] = []

    def knock() -> None:
        with pytest.raises(TimeoutError) as refusal:
            listener.connect_to_it()
        refusals.append(refusal.value)

    listener.before_closing = knock

    await serve_and_stop(listener, fake_bundle)

    assert len(refusals) == 1


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who waits at a port")
async def test_the_port_is_open_until_every_client_is_accepted() -> None:
    listener = Listener()
    accepted: list[socket.socket] = []
    num_accepted: list[int] = []
    listener.before_closing = lambda: num_accepted.append(len(accepted))
    with listener.connect_to_it():
        asyncio.get_running_loop().call_later(
            2 * farewell.ACCEPT_S, lambda: accepted.append(listener.accept()[0])
        )

        await farewell.close_port([], [listener], patience_s=60)

    assert num_accepted == [1]
    accepted[0].close()


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who waits at a port")
async def test_the_port_closes_when_patience_ends() -> None:
    listener = Listener()
    with listener.connect_to_it():
        async with asyncio.timeout(farewell.MOST_ACCEPT_S / 2):
            await farewell.close_port([], [listener], patience_s=0.2)

    assert listener.fileno() < 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_loses_no_request(
    start: Start, jpeg_bytes: bytes, number: signal.Signals
) -> None:
    process = start()
    address = process.read_address()
    process.wait_until_ready(address)
    load = Load(address, jpeg_bytes, num_clients=8)
    assert load.is_flowing.wait(timeout=60)

    process.popen.send_signal(number)
    load.wait()

    assert load.lost == []
    assert set(load.answers) == {200}
    assert process.popen.wait(timeout=60) == 0


def test_a_closed_terminal_stops_the_service_that_writes_its_log_there(toy_bundle: Path) -> None:
    screen, terminal = os.openpty()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "service"],
        env=os.environ | {"DETR_BUNDLE": str(toy_bundle), "DETR_PORT": str(port)},
        stdin=terminal,
        stderr=terminal,
    )
    try:
        os.close(terminal)
        while b"page is at" not in os.read(screen, 1000):
            pass

        os.close(screen)

        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_request_sent_while_the_service_stops_is_still_answered(
    start: Start, jpeg_bytes: bytes
) -> None:
    process = start(drain_delay_s=1)
    address = process.read_address()
    process.wait_until_ready(address)

    process.popen.send_signal(signal.SIGTERM)
    with httpx.Client(base_url=address) as client:
        while client.get("/readyz").json() != {"status": "draining"}:
            pass
        answer = client.post("/detect", content=jpeg_bytes)

    assert answer.status_code == 200
    assert process.popen.wait(timeout=60) == 0
