"""Images that are small files and large pictures: a real server, its memory, other clients."""

import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.asking import code_of, message_of
from tests.service.attacks import Target, flood, many, read_answer

SIDE = 2600  # 60 MB while it is decoded, and 27 kB as a file


@pytest.fixture(scope="module")
def target(start: Callable[..., Any]) -> Target:
    return Target(
        start(
            decode_memory_bytes=80 << 20,
            decode_threads=2,
            deadline_s=3,
            max_body_bytes=8 << 20,
            client_body_memory_bytes=32 << 20,
        )
    )


@pytest.fixture(scope="module")
def bomb(encode: Callable[..., bytes]) -> bytes:
    return encode(np.zeros((SIDE, SIDE, 4), np.uint8), "PNG", compress_level=1)


def png_that_says(width: int, height: int) -> bytes:
    """The start of an RGBA PNG of that size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


def other_client() -> httpx.Client:
    """A client with its own address."""
    return httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=30)


def test_an_image_that_needs_more_memory_than_there_is_for_it_is_refused_unseen(
    target: Target,
) -> None:
    answer = httpx.post(f"{target.address}/detect", content=png_that_says(9999, 9999))

    assert (answer.status_code, code_of(answer)) == (413, "image_too_large")
    assert "got 9999 x 9999 pixels that take 683 MiB" in message_of(answer)
    assert "DETR_DECODE_MEMORY_BYTES" in message_of(answer)
    assert target.growth_mb() < 20


def test_many_large_images_of_one_client_hold_up_no_other(
    target: Target, bomb: bytes, jpeg_bytes: bytes
) -> None:
    url = f"{target.address}/detect"
    files = [("images", bomb)] * 16
    growth_mb: list[float] = []
    statuses: list[int] = []

    with ThreadPoolExecutor(2) as attackers, other_client() as client:
        attacks = [attackers.submit(httpx.post, url, files=files, timeout=60) for _ in range(2)]
        while not all(attack.done() for attack in attacks):
            statuses.append(client.post(url, content=jpeg_bytes).status_code)
            growth_mb.append(target.growth_mb())

    assert set(statuses) == {200}  # some, while the attacks went on
    assert {attack.result().status_code for attack in attacks} <= {200, 503, 504}
    assert max(growth_mb) < 250
    assert target.wait_until(lambda: target.growth_mb() < 100)


def test_an_image_is_drawn_within_the_same_budget(target: Target, bomb: bytes) -> None:
    answer = httpx.post(
        f"{target.address}/detect", content=bomb, headers={"Accept": "image/jpeg"}, timeout=60
    )

    assert answer.headers["content-type"] == "image/jpeg"
    assert target.wait_until(lambda: target.growth_mb() < 100)


@pytest.mark.parametrize(
    "content_type", [b"image/png", b"multipart/form-data; boundary=b"], ids=["raw", "form"]
)
def test_unfinished_bodies_of_one_client_are_given_up_where_they_hold_too_much(
    target: Target, jpeg_bytes: bytes, content_type: bytes
) -> None:
    head = (
        b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nContent-Length: 8388608\r\n\r\n"
    )
    part = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'

    with many(target, 40) as clients, other_client() as other:
        for client in clients:
            flood(client, head % content_type + part, b"x" * 65536, most_mb=7)
        growth_mb = target.growth_mb()
        status = other.post(f"{target.address}/detect", content=jpeg_bytes).status_code
        first = read_answer(clients[0])

    assert growth_mb < 120
    assert status == 200
    assert (first.status, first.code) == (503, "overloaded")
    assert target.wait_until(lambda: target.growth_mb() < 80)
