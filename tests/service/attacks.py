"""What clients do to a service that is not their friend: raw sockets, and how it holds out."""

import json
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx

from tests.server_process import Process

PATIENCE_S = 20.0


class Answer(NamedTuple):
    """What came back on a socket."""

    status: int
    code: str | None  # of our JSON errors
    headers: str
    body: str

    @property
    def message(self) -> str:
        """Of our JSON errors."""
        return str(json.loads(self.body)["error"]["message"])


class Target:
    """A running service, and its memory before the attack."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.address = process.read_address()
        process.wait_until_ready(self.address)
        self._host, self._port = self.address.removeprefix("http://").split(":")
        self._rss_mb = process.rss_mb()

    def connect(self, local_address: str = "") -> socket.socket:
        return socket.create_connection(
            (self._host, int(self._port)), timeout=PATIENCE_S, source_address=(local_address, 0)
        )

    def growth_mb(self) -> float:
        """Memory beyond what the process had at first."""
        return self.process.rss_mb() - self._rss_mb

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.address}/metrics").text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, flags=re.M)
        return float(found[1]) if found else 0.0

    def wait_until(self, is_so: Callable[[], bool]) -> bool:
        end = time.monotonic() + PATIENCE_S
        while not is_so():
            if time.monotonic() > end:
                return False
        return True


def flood(client: socket.socket, start: bytes, more: bytes, most_mb: float) -> float:
    """Send `more` again and again until the service stops it; how many MB that were.

    It stops as soon as the service has answered, closed the connection, or not read for 2 s.
    """
    client.settimeout(2)
    num_sent = 0
    try:
        client.sendall(start)
        while num_sent < most_mb * 1e6 and not _has_answer(client):
            num_sent += client.send(more)
    except OSError:
        pass
    client.settimeout(PATIENCE_S)
    return num_sent / 1e6


def trickle(client: socket.socket, start: bytes, more: bytes, every_s: float) -> None:
    """Send `more` at this interval until the service answers or closes the connection."""
    try:
        client.sendall(start)
        client.settimeout(every_s)
        while True:
            try:
                client.recv(1, socket.MSG_PEEK)
                return
            except TimeoutError:
                client.sendall(more)
    except OSError:
        pass
    finally:
        client.settimeout(PATIENCE_S)


def read_answer(client: socket.socket) -> Answer:
    """All that comes until the connection is closed, as one answer."""
    return _answer(*read_all(client).partition(b"\r\n\r\n")[::2])


def split_answers(data: bytes) -> list[Answer]:
    """The answers that came one after another, each with its length."""
    answers = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        length = int(found[1]) if found else 0
        answers.append(_answer(head, rest[:length]))
        data = rest[length:]
    return answers


def _answer(head: bytes, body: bytes) -> Answer:
    code = json.loads(body)["error"]["code"] if body.startswith(b'{"error"') else None
    return Answer(int(head.split()[1]), code, head.decode(), body.decode())


def read_all(client: socket.socket) -> bytes:
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@contextmanager
def many(target: Target, count: int, begin: bytes = b"") -> Iterator[list[socket.socket]]:
    """This many open connections, on each of which the client has sent `begin`."""
    clients: list[socket.socket] = []
    try:
        for _ in range(count):
            clients.append(target.connect())
            clients[-1].sendall(begin)
        yield clients
    finally:
        for client in clients:
            client.close()


def _has_answer(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0])
