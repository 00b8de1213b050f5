"""Replicas of the service behind HAProxy, with docker/haproxy/haproxy.cfg, on this machine.

Replicas listen on the same port of 127.0.0.2, 127.0.0.3 and so on, as containers do on their own
addresses. A small name server stands in for the container engine's.
"""

import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "docker/haproxy/haproxy.cfg"
LIMIT_S = 60

_ADDRESS_RECORD = 1


def find_haproxy() -> str | None:
    """The program, which Debian installs outside of users' PATH; None if it is not installed."""
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Proxy:
    """A running proxy; it resolves replicas to `hosts`, which may be changed."""

    address: str
    metrics_address: str
    port: int  # of every replica
    hosts: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port for clients."""
        host, port = self.address.removeprefix("http://").split(":")
        return host, int(port)

    def sessions(self) -> dict[str, int]:
        """Requests in flight, by the address of each replica that is up."""
        stats = self._stats()
        return {
            name: int(float(value))
            for name, value in _samples(stats, "haproxy_server_current_sessions")
            if name in self._up(stats)
        }

    def num_up(self) -> int:
        """How many replicas pass the proxy's checks."""
        return len(self._up(self._stats()))

    def wait_for(self, num_replicas: int) -> None:
        """Wait until this many replicas are up.

        Raises:
            TimeoutError: they are not within a minute.
        """
        deadline = time.monotonic() + LIMIT_S
        while self.num_up() != num_replicas:
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected {num_replicas} replicas, got {self.num_up()}")
            time.sleep(0.05)

    def _stats(self) -> str:
        with urllib.request.urlopen(f"{self.metrics_address}/metrics", timeout=LIMIT_S) as answer:
            return str(answer.read(), "utf-8")

    @staticmethod
    def _up(stats: str) -> set[str]:
        found = _samples(stats, "haproxy_server_status", state="UP")
        return {name for name, value in found if float(value) == 1}


def _samples(stats: str, metric: str, **labels: str) -> Iterator[tuple[str, str]]:
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    for line in stats.splitlines():
        if line.startswith(metric + "{") and all(label in line for label in wanted):
            yield line.split('server="')[1].split('"')[0], line.split()[-1]


@contextmanager
def proxy(config: Path = CONFIG) -> Iterator[Proxy]:
    """Run HAProxy with the configuration, at first without a replica."""
    program = find_haproxy()
    if program is None:
        raise FileNotFoundError("HAProxy is not installed: make peers, or apt-get install haproxy")
    ports = [free_port() for _ in range(3)]
    found = Proxy(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", ports[2])
    with name_server(found.hosts) as dns_port:
        environment = os.environ | {
            "LISTEN": f"127.0.0.1:{ports[0]}",
            "METRICS": f"127.0.0.1:{ports[1]}",
            "REPLICAS": f"service:{ports[2]}",
            "DNS": f"127.0.0.1:{dns_port}",
        }
        process = subprocess.Popen(
            [program, "-db", "-q", "-f", config], env=environment, stdout=subprocess.DEVNULL
        )
        try:
            _wait_for_port(ports[1], process)
            yield found
        finally:
            process.kill()
            process.wait()


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(f"{process.args!r} does not listen on port {port}")


def wait_until_ready(address: str) -> None:
    """Wait until the service at an address takes requests.

    Raises:
        TimeoutError: it does not within a minute.
    """
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            return urllib.request.urlopen(f"{address}/readyz", timeout=LIMIT_S).close()
        except OSError:  # refused, or an error status
            time.sleep(0.05)
    raise TimeoutError(f"nothing is ready at {address}")


@contextmanager
def name_server(hosts: Sequence[str]) -> Iterator[int]:
    """Run a name server that answers every query with the current hosts; yields its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        is_over = threading.Event()
        thread = threading.Thread(target=_answer, args=(server, hosts, is_over))
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.sendto, b"", server.getsockname())  # wakes it
        stack.callback(is_over.set)
        yield server.getsockname()[1]


def _answer(server: socket.socket, hosts: Sequence[str], is_over: threading.Event) -> None:
    while True:
        query, asker = server.recvfrom(4096)
        if is_over.is_set():
            return
        question = query[12 : query.index(0, 12) + 5]  # name, type, class
        is_wanted = struct.unpack(">H", question[-4:-2]) == (_ADDRESS_RECORD,)
        addresses = [socket.inet_aton(host) for host in hosts] if is_wanted else []
        header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
        record = b"\xc0\x0c" + struct.pack(">HHIH", _ADDRESS_RECORD, 1, 1, 4)
        records = b"".join(record + address for address in addresses)
        server.sendto(header + question + records, asker)


@contextmanager
def mock_replica(
    host: str, port: int, *, bundle: Path, arguments: Sequence[str], **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service with a mock engine in a separate process, which is killed at the end.

    Args:
        bundle: see `benchmarks.bench_service.make_bundle`.
        arguments: of benchmarks.mock_service.
        variables: of its environment.
    """
    environment = {name: text for name, text in os.environ.items() if not name.startswith("DETR_")}
    environment |= {
        "DETR_HOST": host,
        "DETR_PORT": str(port),
        "DETR_BUNDLE": str(bundle),
        "DETR_LOG_LEVEL": "warning",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.mock_service", *arguments], env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def replica_host(index: int) -> str:
    """The address of replica `index`, counted from 0."""
    return f"127.0.0.{index + 2}"
