"""Clients that send one image again and again, in a process of their own: closed and open loops."""

import asyncio
import random
import statistics
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NamedTuple

BOUNDARY = b"bench"
HOST = "127.0.0.1"
WARM_UP_S = 3.0  # until a server has learnt what it can about the load
PATIENCE_S = 20.0  # after an open loop, for answers that are still due
IDLE_S = 4.0  # a connection is not used again after that: uvicorn's close after 5 s


class Sample(NamedTuple):
    """One measurement of a loop.

    Attributes:
        images_per_s: answered with 200 while it was measured.
        median_ms, p99_ms: of those; in an open loop from the time that a request was due.
        num_errors: of other answers, and of requests without any.
        num_answered: with 200, those of the warm-up included.
    """

    images_per_s: float
    median_ms: float
    p99_ms: float
    num_errors: int
    num_answered: int


class Tally:
    """Counts what comes back; the first seconds are a warm-up."""

    def __init__(self, seconds: float) -> None:
        self.started = time.perf_counter() + WARM_UP_S
        self.ended = self.started + seconds
        self._seconds = seconds
        self._latencies_ms: list[float] = []
        self._num_in_time = 0
        self._num_errors = 0
        self._num_answered = 0

    def count(self, status: int, due: float) -> None:
        """An answer to a request that was due at this time; status 0 is none."""
        done = time.perf_counter()
        if status != 200:
            self._num_errors += 1
            return
        self._num_answered += 1
        self._num_in_time += self.started < done < self.ended
        if self.started < done and due < self.ended:
            self._latencies_ms.append((done - due) * 1e3)

    def sample(self) -> Sample:
        """What was counted."""
        centiles = statistics.quantiles(self._latencies_ms or [0.0, 0.0], n=100)
        return Sample(
            self._num_in_time / self._seconds,
            centiles[49],
            centiles[98],
            self._num_errors,
            self._num_answered,
        )


def measure(port: int, num_clients: int, *, seconds: float, body: bytes) -> Sample:
    """A closed loop: clients that send a request after each answer."""
    return asyncio.run(_closed_loop(port, num_clients, tally=Tally(seconds), body=body))


def measure_open(port: int, rate: float, *, seconds: float, body: bytes) -> Sample:
    """An open loop: `rate` requests a second at random times, whatever becomes of them."""
    return asyncio.run(_open_loop(port, rate, tally=Tally(seconds), body=body))


async def _closed_loop(port: int, num_clients: int, *, tally: Tally, body: bytes) -> Sample:
    request = _request(body)

    async def client() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        while (sent := time.perf_counter()) < tally.ended:
            writer.write(request)
            tally.count(await _read_answer(reader), sent)
        writer.close()

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return tally.sample()


async def _open_loop(port: int, rate: float, *, tally: Tally, body: bytes) -> Sample:
    request = _request(body)
    idle: list[_Idle] = []
    tasks: set[asyncio.Task[None]] = set()

    async def ask(due: float) -> None:
        status = 0
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + _left_s(tally)):
                reader, writer = _newest(idle) or await asyncio.open_connection(HOST, port)
                writer.write(request)
                status = await _read_answer(reader)
                idle.append(_Idle(reader, writer, time.perf_counter()))
        tally.count(status, due)

    due = time.perf_counter()
    while due < tally.ended:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        _keep(ask(due), tasks)
        due += random.expovariate(rate)
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.writer.close()
    return tally.sample()


class _Idle(NamedTuple):
    """A connection without a request on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    since: float


def _newest(idle: list[_Idle]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Take the connection that became idle last; if even that was long ago, none."""
    if not idle or time.perf_counter() - idle[-1].since > IDLE_S:
        return None
    reader, writer, _ = idle.pop()
    return reader, writer


def _left_s(tally: Tally) -> float:
    return tally.ended + PATIENCE_S - time.perf_counter()


def _keep(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _request(body: bytes) -> bytes:
    return (
        b"POST /detect HTTP/1.1\r\nHost: bench\r\nContent-Type: multipart/form-data; boundary=%s"
        b"\r\nContent-Length: %d\r\n\r\n%s" % (BOUNDARY, len(body), body)
    )


async def _read_answer(reader: asyncio.StreamReader) -> int:
    """The status of the next answer; its body is read and discarded."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(b" ")[1])
