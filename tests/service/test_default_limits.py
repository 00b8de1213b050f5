"""The service with no setting but its port, under attack by one client: memory, health, others."""

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.attacks import Target, flood, many

MOST_MB = 300e6 / (1 << 20)
MIN_LOOKS = 30
BODY = b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 33000000\r\nContent-Type: "
FORM = b"multipart/form-data; boundary=b\r\n\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
BOMB_SIDE = 5100  # RGBA: 174 MiB of the 192 that a client may use


@pytest.fixture(scope="module")
def target(start: Callable[..., Any], jpeg_bytes: bytes) -> Target:
    target = Target(start())
    httpx.post(f"{target.address}/detect", content=jpeg_bytes).raise_for_status()
    return target


class Watch:
    """What another client sees of a service while something happens."""

    def __init__(self, target: Target, image: bytes) -> None:
        self.growth_mb: list[float] = []
        self.statuses: set[int] = set()
        self._target = target
        self._image = image
        self._looks = threading.Semaphore(0)
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._look, self._detect)]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def look_on(self) -> None:
        """Return after it has been looked at often."""
        for _ in range(MIN_LOOKS):
            assert self._looks.acquire(timeout=30)

    def _client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=30)

    def _look(self) -> None:
        with self._client() as client:
            while not self._is_over.wait(0.01):
                client.get(f"{self._target.address}/healthz").raise_for_status()
                self.growth_mb.append(self._target.growth_mb())
                self._looks.release()

    def _detect(self) -> None:
        with self._client() as client:
            while not self._is_over.wait(0.05):
                answer = client.post(f"{self._target.address}/detect", content=self._image)
                self.statuses.add(answer.status_code)


def send(target: Target, count: int, **request: Any) -> set[int]:
    """Post this many times to /detect, 3 at a time."""
    with ThreadPoolExecutor(3) as pool:
        url = f"{target.address}/detect"
        posts = [pool.submit(httpx.post, url, timeout=60, **request) for _ in range(count)]
        return {post.result().status_code for post in posts}


def endless_headers(target: Target, _: bytes) -> None:
    with target.connect() as client:
        flood(client, b"GET /healthz HTTP/1.1\r\nHost: a\r\nA: ", b"x" * 1000, most_mb=200)


def unread_answers(target: Target, _: bytes) -> None:
    with many(target, 2) as clients:
        for client in clients:
            flood(client, b"", b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 1000, most_mb=200)


def large_pictures(target: Target, bomb: bytes) -> None:
    assert send(target, 2, files=[("images", bomb)] * 5) <= {200, 503, 504}


def unfinished_bodies(target: Target, _: bytes) -> None:
    with many(target, 12) as clients:
        for client in clients:
            flood(client, BODY + FORM + PART, b"x" * 65536, most_mb=32)


def pictures_beside_unfinished_bodies(target: Target, bomb: bytes) -> None:
    with many(target, 8) as clients:
        for client in clients:
            flood(client, BODY + FORM + PART, b"x" * 65536, most_mb=8)
        assert send(target, 3, files=[("images", bomb)]) <= {200, 503, 504}


def large_json(target: Target, _: bytes) -> None:
    text = base64.b64encode(b"x" * 22_000_000).decode()
    body = json.dumps({"images": [text]}).encode()
    headers = {"Content-Type": "application/json"}
    assert send(target, 4, content=body, headers=headers) <= {415, 503}


def idle_connections(target: Target, _: bytes) -> None:
    with many(target, 900) as clients:
        flood(clients[-1], b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"A: b\r\n" * 100, most_mb=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        endless_headers,
        unread_answers,
        large_json,
        large_pictures,
        unfinished_bodies,
        pictures_beside_unfinished_bodies,
        idle_connections,
    ],
)
def test_one_client_neither_fills_the_memory_nor_holds_up_others(
    target: Target,
    encode: Callable[..., bytes],
    jpeg_bytes: bytes,
    attack: Callable[[Target, bytes], None],
) -> None:
    bomb = encode(np.zeros((BOMB_SIDE, BOMB_SIDE, 4), np.uint8), "PNG", compress_level=1)

    with Watch(target, jpeg_bytes) as watch:
        attack(target, bomb)
        watch.look_on()

    assert max(watch.growth_mb) < MOST_MB
    assert watch.statuses == {200}
    assert target.wait_until(lambda: target.growth_mb() < 100)
