"""What an attack costs the others: python -m benchmarks.bench_attacks.

The service runs with its default settings and a mock engine. During each attack, another client
keeps asking for /healthz, and a third one keeps asking a plain server that only answers: its
latency is that of the machine. The table shows the largest growth of memory, and the latencies.
"""

import argparse
import http.client
import io
import multiprocessing
import re
import selectors
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.bench_service import make_body, make_bundle
from benchmarks.mock_engine import FIXED_MS, IMAGE_MS, MAX_BATCH_SIZE
from benchmarks.replicas import free_port, mock_replica, wait_until_ready

HOST = "127.0.0.1"
OTHER = ("127.0.0.2", 0)  # the address of the client that is not the attacker
ENGINE = [f"{value:g}" for value in (FIXED_MS, IMAGE_MS, MAX_BATCH_SIZE)]
PATIENCE_S = 2.0
FLOOD_S = 5.0
BODY = (
    b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 33000000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
)


def flood(port: int, start: bytes, *, more: bytes, most_mb: float) -> socket.socket:
    """Send until the service stops reading or closes; the connection stays open."""
    client = socket.create_connection((HOST, port), timeout=PATIENCE_S)
    with suppress(OSError):
        client.sendall(start)
        for _ in range(int(most_mb * 1e6) // len(more)):
            client.sendall(more)
    return client


def endless_headers(port: int) -> None:
    """A header without an end."""
    flood(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\nA: ", more=b"x" * 1000, most_mb=200).close()


def unread_answers(port: int) -> None:
    """Pipelined requests whose answers are not read."""
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 1000
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(flood(port, b"", more=requests, most_mb=200))


def unfinished_bodies(port: int) -> None:
    """Bodies that stop shortly before their end."""
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(flood(port, BODY, more=b"x" * 65536, most_mb=32))


def large_pictures(port: int) -> None:
    """Files of 450 kB that hold 26 megapixels, three requests at a time."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((5100, 5100, 4), np.uint8)).save(buffer, "PNG", compress_level=1)

    def post() -> None:
        client = http.client.HTTPConnection(HOST, port, timeout=60)
        client.request("POST", "/detect", buffer.getvalue())
        client.getresponse().read()

    threads = [threading.Thread(target=post) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def pictures_beside_bodies(port: int) -> None:
    """Both at once."""
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(flood(port, BODY, more=b"x" * 65536, most_mb=8))
        large_pictures(port)


def many_requests(port: int) -> None:
    """500 connections that each ask again as soon as they have an answer."""
    _ask_again_and_again(port, b"/healthz", num_clients=500)


def reconnections(port: int) -> None:
    """200 connections that are opened together, ask once and are closed, again and again."""
    end = time.monotonic() + FLOOD_S
    while time.monotonic() < end:
        with ExitStack() as stack, suppress(OSError):
            for _ in range(200):
                client = socket.create_connection((HOST, port), timeout=PATIENCE_S)
                stack.enter_context(client).sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")


def descriptions(port: int) -> None:
    """50 connections that ask for the API's description again and again."""
    _ask_again_and_again(port, b"/openapi.json", num_clients=50)


def _ask_again_and_again(port: int, path: bytes, *, num_clients: int) -> None:
    request = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path
    end = time.monotonic() + FLOOD_S
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(num_clients):
            client = socket.create_connection((HOST, port), timeout=PATIENCE_S)
            stack.enter_context(client).sendall(request)
            selector.register(client, selectors.EVENT_READ, 0)
        while time.monotonic() < end:
            for key, _ in selector.select(PATIENCE_S):
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(1 << 20)
                num_left = key.data or _length_of(data)
                num_left -= len(data)
                if num_left <= 0:
                    key.fileobj.sendall(request)
                selector.modify(key.fileobj, selectors.EVENT_READ, max(num_left, 0))


def _length_of(answer: bytes) -> int:
    """How long an answer is, from its beginning."""
    head, _, _ = answer.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return len(head) + 4 + int(found[1]) if found else 0


def idle_connections(port: int) -> None:
    """2,000 connections that send nothing, or as many as this process may open."""
    with ExitStack() as stack, suppress(OSError):
        for _ in range(2000):
            stack.enter_context(socket.create_connection((HOST, port), timeout=PATIENCE_S))


ATTACKS: tuple[Callable[[int], None], ...] = (
    endless_headers,
    unread_answers,
    unfinished_bodies,
    large_pictures,
    pictures_beside_bodies,
    many_requests,
    reconnections,
    descriptions,
    idle_connections,
)


class _Plain(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def serve_plainly(port: int) -> None:
    """A server that answers at once."""
    ThreadingHTTPServer((HOST, port), _Plain).serve_forever()


def rss_mb(pid: int) -> float:
    """Memory that a process holds now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


class Watch:
    """What another client sees while something happens, in a thread."""

    def __init__(self, pid: int, *, port: int, plain_port: int) -> None:
        self.latencies_ms: dict[int, list[float]] = {port: [], plain_port: []}
        self.most_mb = 0.0
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.01):
            for port, latencies_ms in self.latencies_ms.items():
                client = http.client.HTTPConnection(HOST, port, timeout=60, source_address=OTHER)
                started = time.perf_counter()
                client.request("GET", "/healthz")
                client.getresponse().read()
                latencies_ms.append((time.perf_counter() - started) * 1e3)
                client.close()
            self.most_mb = max(self.most_mb, rss_mb(self._pid))


def main() -> None:
    """Measure every attack and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="least time of a measurement")
    args = parser.parse_args()
    port, plain_port = free_port(), free_port()
    context = multiprocessing.get_context("spawn")
    plain = context.Process(target=serve_plainly, args=(plain_port,), daemon=True)
    plain.start()
    print("| attack | MiB more | /healthz ms: median | p99 | most | plain server: p99 | most |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        make_bundle(bundle := Path(directory) / "mock")
        with mock_replica(HOST, port, bundle=bundle, arguments=ENGINE) as process:
            wait_until_ready(f"http://{HOST}:{port}")
            client = http.client.HTTPConnection(HOST, port, timeout=60)
            client.request("POST", "/detect", make_body()[1])
            client.getresponse().read()
            before_mb = rss_mb(process.pid)
            for attack in ATTACKS:
                watch, started = (
                    Watch(process.pid, port=port, plain_port=plain_port),
                    time.monotonic(),
                )
                attack(port)
                time.sleep(max(0.0, args.seconds - (time.monotonic() - started)))
                watch.stop()
                ours_ms, plain_ms = watch.latencies_ms[port], watch.latencies_ms[plain_port]
                print(
                    f"| {attack.__name__.replace('_', ' ')} | {watch.most_mb - before_mb:.0f} | "
                    f"{statistics.median(ours_ms):.1f} | {np.quantile(ours_ms, 0.99):.1f} | "
                    f"{max(ours_ms):.1f} | {np.quantile(plain_ms, 0.99):.1f} | "
                    f"{max(plain_ms):.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
