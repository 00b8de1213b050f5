"""HAProxy as it ships, before replicas that are killed and drained, and clients that dawdle."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from benchmarks.bench_service import make_bundle
from benchmarks.replicas import (
    CONFIG,
    find_haproxy,
    mock_replica,
    proxy,
    replica_host,
    wait_until_ready,
)
from detr_client import DetrClient, Retries
from tests.server_process import Process

pytestmark = pytest.mark.skipif(find_haproxy() is None, reason="no HAProxy: make peers")

IMAGE_MS = 1000  # all requests of a test have to be in flight together for a while
DRAIN_DELAY_S = 2  # longer than the two looks that the proxy takes


class Fleet:
    """Replicas behind the proxy, each of which takes IMAGE_MS for an image, one after the other."""

    def __init__(self, stack: ExitStack, bundle: Path) -> None:
        self.front = stack.enter_context(proxy())
        self.address = self.front.address
        self.hosts = [replica_host(0), replica_host(1)]
        self._bundle = bundle
        self._stack = stack
        self.replicas = [self.start(host) for host in self.hosts]
        for host in self.hosts:
            wait_until_ready(f"http://{host}:{self.front.port}")
        self.front.hosts.extend(self.hosts)
        self.front.wait_for(2)

    def start(self, host: str) -> subprocess.Popen[bytes]:
        return self._stack.enter_context(
            mock_replica(
                host,
                self.front.port,
                bundle=self._bundle,
                arguments=("0", str(IMAGE_MS), "1"),
                DETR_DRAIN_DELAY_S=str(DRAIN_DELAY_S),
            )
        )

    def wait_until_in_flight(self, count: int) -> None:
        """Wait until the replicas have this many requests together, and each has some."""
        deadline = time.monotonic() + 10
        while sum(in_flight := self.front.sessions().values()) != count or min(in_flight) == 0:
            assert time.monotonic() < deadline, self.front.sessions()


@pytest.fixture(scope="module")
def mock_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles") / "mock"
    make_bundle(directory)
    return directory


@pytest.fixture(scope="module")
def shared_fleet(mock_bundle: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack, mock_bundle)


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    """Both replicas are up, restarted if a test has ended one."""
    for index, replica in enumerate(shared_fleet.replicas):
        if replica.poll() is not None:
            shared_fleet.replicas[index] = shared_fleet.start(shared_fleet.hosts[index])
    shared_fleet.front.wait_for(2)
    return shared_fleet


def test_what_belongs_to_one_replica_is_not_to_be_had_through_the_proxy(fleet):
    for path in ("/metrics", "/%6detrics", "/metrics%3f"):
        assert httpx.get(f"{fleet.address}{path}").status_code == 404
    for path in ("/admin/reload", "/%61dmin/reload"):
        answer = httpx.post(f"{fleet.address}{path}")
        assert (answer.status_code, answer.content) == (404, b"")
    assert httpx.get(f"{fleet.address}/readyz").status_code == 200


@pytest.mark.timeout(60)
def test_of_a_killed_replica_only_the_requests_in_flight_fail(fleet, jpeg_bytes):
    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(client.post, f"{fleet.address}/detect", content=jpeg_bytes)
            for _ in range(6)
        ]
        fleet.wait_until_in_flight(6)
        most_lost = max(fleet.front.sessions().values())
        fleet.replicas[0].kill()
        in_flight = [answer.result().status_code for answer in asked]
    later = [httpx.post(f"{fleet.address}/detect", content=jpeg_bytes) for _ in range(4)]

    assert set(in_flight) == {200, 502}
    assert in_flight.count(502) <= most_lost < 6
    assert [answer.status_code for answer in later] == [200] * 4


@pytest.mark.timeout(60)
def test_the_client_asks_again_for_what_a_killed_replica_had_in_flight(fleet, jpeg_bytes):
    with (
        DetrClient(fleet.address, retries=Retries(first_s=0.1)) as client,
        ThreadPoolExecutor(6) as pool,
    ):
        asked = [pool.submit(client.detect, jpeg_bytes) for _ in range(6)]
        fleet.wait_until_in_flight(6)
        fleet.replicas[0].kill()

        answers = [answer.result() for answer in asked]

    assert [answer.detections[0].category_name for answer in answers] == ["thing"] * 6


def test_what_is_sent_to_another_replica_is_counted_by_what_the_dashboard_shows(tmp_path):
    late = tmp_path / "haproxy.cfg"
    late.write_text(CONFIG.read_text().replace("check inter 500ms", "check inter 30s"))

    with proxy(late) as front, HTTPServer((replica_host(0), front.port), _Ready) as replica:
        Thread(target=replica.serve_forever, daemon=True).start()
        front.hosts.extend([replica_host(0), replica_host(1)])  # nothing listens on the second
        front.wait_for(2)
        statuses = [httpx.get(f"{front.address}/readyz").status_code for _ in range(4)]
        metrics = httpx.get(f"{front.metrics_address}/metrics").text
        replica.shutdown()

    (expression,) = _expressions("Retries of the proxy")
    assert statuses == [200] * 4
    assert _now(expression, metrics) > 0


def test_what_a_dying_replica_had_in_flight_is_counted_by_what_the_dashboard_shows():
    with proxy() as front, HTTPServer((replica_host(0), front.port), _Ready) as replica:
        thread = Thread(target=replica.serve_forever, daemon=True)
        thread.start()
        front.hosts.append(replica_host(0))
        front.wait_for(1)
        broken_off = httpx.post(f"{front.address}/detect").status_code
        with httpx.Client() as client:
            client.get(f"{front.address}/readyz")
            with pytest.raises(httpx.RemoteProtocolError):
                client.post(f"{front.address}/detect")
        replica.shutdown()
        thread.join()
        replica.server_close()
        not_reached = httpx.get(f"{front.address}/readyz").status_code
        metrics = httpx.get(f"{front.metrics_address}/metrics").text

    lost = [_now(one, metrics) for one in _expressions("Requests that the proxy lost")]
    assert (broken_off, not_reached) == (502, 503)
    assert lost == [1, 1, 1]


class _Ready(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")  # or it would have no time for another
        self.end_headers()

    def do_POST(self) -> None:
        self.close_connection = True  # without an answer

    def log_message(self, format: str, *args: Any) -> None: ...


def _expressions(title: str) -> list[str]:
    """Of a panel of the dashboard."""
    panels = json.loads((CONFIG.parents[1] / "grafana/dashboards/detr.json").read_text())["panels"]
    targets = next(panel for panel in panels if panel["title"] == title)["targets"]
    return [target["expr"] for target in targets]


def _now(expression: str, metrics: str) -> float:
    """The difference of series that an expression takes over time, as they are at one moment."""
    sums = [
        sum(map(float, re.findall(rf"^{name}{{{labels}.*}} (\S+)$", metrics, flags=re.M)))
        for name, labels in re.findall(r"(haproxy_\w+){(.*?)}", expression)
    ]
    return sums[0] - sum(sums[1:])


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_replica_that_is_drained_costs_no_request(fleet, jpeg_bytes):
    def ask_until_drained() -> list[int]:
        with httpx.Client(timeout=30) as client:
            statuses: list[int] = []
            while fleet.replicas[0].poll() is None or len(statuses) < 3:
                answer = client.post(f"{fleet.address}/detect", content=jpeg_bytes)
                statuses.append(answer.status_code)
            return statuses

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask_until_drained) for _ in range(4)]
        fleet.wait_until_in_flight(4)
        fleet.replicas[0].terminate()
        statuses = [status for answer in asked for status in answer.result()]

    assert set(statuses) == {200}
    assert fleet.replicas[0].wait() == 0


@pytest.mark.parametrize(
    "sent",
    [b"POST /detect HTTP/1.1\r\nHost: a\r\nX-", b"POST /detect HTTP/1.1\r\nHost: a\r\n"
     b"Content-Length: 9000\r\n\r\nfirst bytes"],
    ids=["headers", "body"],
)  # fmt: skip
def test_a_client_that_dawdles_is_cut_by_the_proxy(sent, tmp_path):
    quick = tmp_path / "haproxy.cfg"
    quick.write_text(
        CONFIG.read_text().replace("timeout http-request 10s", "timeout http-request 300ms")
    )

    with proxy(quick) as front, socket.create_connection(front.endpoint, timeout=10) as slow:
        slow.sendall(sent)
        answer = slow.recv(4096)

    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
def test_replicas_are_told_the_address_of_the_client_and_of_no_other(toy_bundle, jpeg_bytes):
    with proxy() as front:
        replica = Process(
            bundle=toy_bundle,
            host=replica_host(0),
            port=front.port,
            trusted_proxies="127.0.0.1",
            log_format="json",
        )
        replica.start()
        front.hosts.append(replica_host(0))
        front.wait_for(1)
        with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.9")) as client:
            answer = client.post(
                f"{front.address}/detect",
                content=jpeg_bytes,
                headers={"X-Forwarded-For": "203.0.113.7"},
            )
        replica.stop()
        _, log = replica.end()

    assert answer.status_code == 200
    (line,) = [line for line in map(json.loads, log.splitlines()) if line.get("method") == "POST"]
    assert line["client"] == "127.0.0.9"
    assert "203.0.113.7" not in log
