"""POST /detect with base64 images in a JSON body, on a served bundle."""

import asyncio
import base64
import json
import threading
import tracemalloc
from typing import Any

import httpx
import pytest

from service.errors import InvalidImage, NoImage
from service.json_body import decode_base64, parse_in_turn, read_json_images
from tests.service.asking import code_of, message_of


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_json_is_answered_like_the_same_files_in_a_form(
    address: str, png_bytes: bytes, jpeg_bytes: bytes
) -> None:
    images = [base64_of(png_bytes), base64_of(jpeg_bytes)]

    response = httpx.post(f"{address}/detect", json={"images": images, "image_ids": [7, 3]})

    form = [("images", ("a", png_bytes)), ("images", ("b", jpeg_bytes))]
    of_form = httpx.post(f"{address}/detect", files=form, data={"image_ids": "7,3"}).json()
    nameless = [result | {"file_name": None} for result in of_form["results"]]
    assert response.json() == of_form | {"results": nameless}


def test_json_may_begin_with_a_byte_order_mark(address: str, png_bytes: bytes) -> None:
    body = json.dumps({"images": [base64_of(png_bytes)]}).encode("utf-8-sig")
    headers = {"Content-Type": "application/json"}

    assert httpx.post(f"{address}/detect", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("name", ["images", "image", "file"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_one_image_may_stand_without_a_list_broken_into_lines_or_as_a_data_uri(
    address: str, png_bytes: bytes, name: str, prefix: str
) -> None:
    text = prefix + base64.encodebytes(png_bytes).decode()

    response = httpx.post(f"{address}/detect?threshold=0.5", json={name: text})

    found = response.json()["results"][0]["detections"]
    assert [one["category_name"] for one in found] == ["red", "green"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('{"image": "eA==", "image": "eQ=="}', "image"),
        ('{"images": ["eA=="], "images" : ["eQ=="]}', "images"),
        ('{"file": "eA==", "image_ids": 1, "image_ids": 2}', "image_ids"),
        (r'{"image": "eA==", "im\u0061ge": "eQ=="}', "image"),
    ],
)
def test_json_that_gives_a_name_twice_loses_no_image(address: str, body: str, name: str) -> None:
    response = httpx.post(
        f"{address}/detect", content=body, headers={"Content-Type": "application/json"}
    )

    assert (response.status_code, code_of(response)) == (422, "invalid_request")
    assert f"{name!r} is given more than once" in message_of(response)


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"images": ["http://x.org/a.jpg"]}, 422, "invalid_request", "not fetched from URLs"),
        ({"url": "HTTPS://x.org/a.jpg"}, 422, "invalid_request", "not fetched from URLs"),
        ({"image": {"url": "s3://b/a.jpg"}}, 422, "invalid_request", "not fetched from URLs"),
        ({"image": "file:///a.jpg"}, 422, "invalid_request", "not fetched from URLs"),
        ({"image": "x!"}, 422, "invalid_image", "image 0: expected the file's content as base64"),
        ({"images": ["eA==", 5]}, 422, "invalid_request", "image 1: expected base64 text, got a n"),
        ({"images": [None]}, 422, "invalid_request", "expected base64 text, got null"),
        ({"image": "eA=="}, 415, "unsupported_media_type", "JPEG"),
        ({"images": [""]}, 422, "no_image", "image 0: expected a file with content"),
        ({"images": []}, 422, "no_image", '{"images": ["<base64>"]}'),
        ({}, 422, "no_image", '{"images": ["<base64>"]}'),
        ({"imagse": "eA=="}, 422, "no_image", "did you mean 'image' or 'images'"),
        ({"image": "eA==", "ids": [1]}, 422, "invalid_request", "unknown name 'ids'"),
        ({"image": "eA==", "threshold": 0.5}, 422, "invalid_request", "/detect?threshold="),
        ({"image": "eA==", "image_ids": [1, 2]}, 422, "invalid_request", "got 2 for 1"),
        ({"image": "eA==", "image_ids": [True]}, 422, "invalid_request", "whole numbers"),
        ({"image": "eA==", "image_ids": []}, 422, "invalid_request", "got 0 for 1"),
        ({"images": ["eA=="] * 17}, 413, "too_many_images", "one request: expected at most 16, g"),
        (["eA=="], 422, "invalid_request", "expected a JSON object, got a list"),
        ("http://x.org/a.jpg", 422, "invalid_request", "expected a JSON object, got text"),
    ],
)
def test_json_that_carries_no_usable_image_is_explained(
    address: str, body: Any, status: int, code: str, message: str
) -> None:
    response = httpx.post(f"{address}/detect", json=body)

    assert (response.status_code, code_of(response)) == (status, code)
    assert message in message_of(response)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000])
def test_a_body_that_is_not_json_is_malformed(address: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}

    response = httpx.post(f"{address}/detect", content=body, headers=headers)

    assert (response.status_code, code_of(response)) == (400, "malformed_body")


def test_json_of_very_many_values_is_refused_unparsed(address: str) -> None:
    body = json.dumps({"images": [0] * 100_000})

    response = httpx.post(
        f"{address}/detect", content=body, headers={"Content-Type": "application/json"}
    )

    assert (response.status_code, code_of(response)) == (422, "invalid_request")
    assert "at most 10000 values" in message_of(response)


def test_a_name_of_any_length_takes_no_memory_but_its_own() -> None:
    name = "a" * 1_000_000
    body = json.dumps({name: 1}).encode()

    tracemalloc.start()
    with pytest.raises(NoImage, match="unknown name 'aaa"):
        read_json_images(body)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most_bytes < 5 * len(name)


def test_base64_text_takes_no_memory_for_each_of_its_spaces() -> None:
    text = "QU JD\n" * 200_000

    tracemalloc.start()
    data = decode_base64(text, "image 0")
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert data == b"ABC" * 200_000
    assert most_bytes < 5 * len(text)


@pytest.mark.anyio
async def test_bodies_are_parsed_one_after_another() -> None:
    """In one thread: side by side, a client's bodies would hold several times their memory."""
    threads = await asyncio.gather(
        *(parse_in_turn(lambda: threading.current_thread().name) for _ in range(20))
    )

    assert set(threads) == {"json_0"}


@pytest.mark.parametrize("inside", ["=", "A="])
def test_padding_before_the_end_is_refused_wherever_it_stands(inside: str) -> None:
    text = "QUJD" * 300_000
    broken = text[: 1 << 20] + inside + text[1 << 20 :]

    assert decode_base64(text, "image 0") == b"ABC" * 300_000
    with pytest.raises(InvalidImage, match="expected the file's content as base64"):
        decode_base64(broken, "image 0")
