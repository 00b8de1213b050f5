"""What POST /detect is sent: forms, raw bodies, and everything that is wrong with them."""

import gc
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.form import FileInPieces
from service.logs import set_up_logging
from tests.fakes import FakeEngine
from tests.service.asking import code_of, message_of, post_by_hand
from tests.service.conftest import MAX_BODY_BYTES

pytestmark = pytest.mark.anyio

URLENCODED = {"Content-Type": "application/x-www-form-urlencoded"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("files", "status", "code", "message"),
    [
        ({}, 422, "no_image", "empty body"),
        ({"img": b"x"}, 422, "no_image", "'images' or 'image' or 'file', got 'img'"),
        ({"images": b""}, 422, "no_image", r"image 0 \('images'\): .* got 0 bytes"),
        ({"images": b"text"}, 415, "unsupported_media_type", r"image 0 \('images'\)"),
        ({"images": b"\x89PNG\r\n\x1a\n"}, 422, "invalid_image", r"image 0 \('images'\)"),
        ({"images": b"x", "more": b"x"}, 422, "invalid_request", "got 'more'"),
    ],
)
async def test_uploads_without_a_usable_image(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    files: dict[str, bytes],
    status: int,
    code: str,
    message: str,
) -> None:
    engine.batch_shapes.clear()

    response = await client.post("/detect", files={k: (k, v) for k, v in files.items()})

    assert (response.status_code, code_of(response)) == (status, code)
    assert re.search(message, message_of(response))
    assert engine.batch_shapes == []


@pytest.mark.parametrize(
    "content",
    [b"image=@photo.jpg", b"image=%FF%D8%FF", b"\x89PNG\x1aIHDR" + b"a file without line breaks"],
)
async def test_a_form_without_files_is_told_how_curl_sends_one(
    client: httpx.AsyncClient, content: bytes
) -> None:
    response = await client.post("/detect", content=content, headers=URLENCODED)

    assert (response.status_code, code_of(response)) == (422, "no_image")
    assert "write -F images=@photo.jpg" in message_of(response)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/json", ""])
async def test_json_that_is_not_declared_as_such_is_told_how(
    client: httpx.AsyncClient, kind: str
) -> None:
    content = b' \n{"images": ["iVBORw0KGgo="]}'

    response = await client.post("/detect", content=content, headers={"Content-Type": kind})

    assert (response.status_code, code_of(response)) == (415, "unsupported_media_type")
    assert "the header Content-Type: application/json" in message_of(response)


async def test_a_whole_file_may_be_declared_as_a_form_as_curl_does(
    client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    response = await client.post("/detect", content=png_bytes, headers=URLENCODED)

    assert response.status_code == 200


@pytest.mark.parametrize("ids", ["1,2", "one", "1_0", "\u0663", "+7", "1.0", "", "9" * 5000])
async def test_ids_must_fit_the_images(
    client: httpx.AsyncClient, png_bytes: bytes, ids: str
) -> None:
    response = await client.post("/detect", files={"images": png_bytes}, data={"image_ids": ids})

    assert (response.status_code, code_of(response)) == (422, "invalid_request")


async def test_ids_may_be_negative_and_have_blanks_around_them(
    client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    files = [("images", png_bytes)] * 2

    response = await client.post("/detect", files=files, data={"image_ids": "-7, 08"})

    assert [result["image_id"] for result in response.json()["results"]] == [-7, 8]


async def test_ids_without_end_are_counted_and_take_no_memory_but_their_own(
    client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    files, ids = {"images": png_bytes}, {"image_ids": [",".join(["12"] * 10_000)] * 3}
    await client.post("/detect", files=files, data=ids)  # what the first leaves is not counted
    tracemalloc.start()

    response = await client.post("/detect", files=files, data=ids)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (response.status_code, code_of(response)) == (422, "invalid_request")
    assert "got 30000 for 1" in message_of(response)
    assert most_bytes < 30_000 * 40


async def test_a_form_of_very_many_fields_is_refused(client: httpx.AsyncClient) -> None:
    field = b'--b\r\nContent-Disposition: form-data; name="image_ids"\r\n\r\n1\r\n'

    response = await client.post("/detect", content=field * 101 + b"--b--\r\n", headers=FORM)

    assert (response.status_code, code_of(response)) == (400, "malformed_body")
    assert "too many fields" in message_of(response)


async def test_text_in_place_of_a_file_is_explained(client: httpx.AsyncClient) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\nphoto.jpg\r\n--b--\r\n'

    response = await client.post("/detect", content=body, headers=FORM)

    assert code_of(response) == "no_image"
    assert "-F images=@photo.jpg" in message_of(response)


async def test_broken_multipart_is_malformed(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    set_up_logging("info", log_format="text")

    response = await client.post("/detect", content=b"--c\r\nnonsense", headers=FORM)

    assert (response.status_code, code_of(response)) == (400, "malformed_body")
    assert "another boundary than its Content-Type" in message_of(response)  # why
    assert not [record for record in caplog.records if "multipart" in record.name]


@pytest.mark.parametrize(("num_images", "arrived"), [(4, "got 4;"), (1001, "got more than 1000;")])
async def test_too_many_images_are_counted_and_the_limit_is_named(
    client: httpx.AsyncClient, num_images: int, arrived: str
) -> None:
    one = b"--b\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\nx\r\n"

    response = await client.post("/detect", content=one * num_images + b"--b--\r\n", headers=FORM)

    assert (response.status_code, code_of(response)) == (413, "too_many_images")
    assert "expected at most 3" in message_of(response)
    assert arrived in message_of(response)
    assert "DETR_MAX_IMAGES" in message_of(response)


def form_of(disposition: bytes, content: bytes) -> bytes:
    """A form of one part, its boundary b."""
    return b"--b\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n--b--\r\n" % (
        disposition,
        content,
    )


@pytest.mark.parametrize("parameter", [b"filename*=UTF-8''a.png", b"FileName*0=a; filename*1=.png"])
async def test_a_file_name_of_a_kind_that_forms_may_not_have_is_explained(
    client: httpx.AsyncClient, png_bytes: bytes, parameter: bytes
) -> None:
    body = form_of(b'name="images"; ' + parameter, png_bytes)

    response = await client.post("/detect", content=body, headers=FORM)

    assert (response.status_code, code_of(response)) == (400, "malformed_body")
    assert re.search(r'\*=, which RFC 7578 .*filename="photo.jpg"', message_of(response))


async def test_a_file_with_names_of_both_kinds_has_the_plain_one(
    client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    names = b"filename=a.png; filename*=UTF-8''b.png"

    response = await client.post(
        "/detect", content=form_of(b"name=images; " + names, png_bytes), headers=FORM
    )

    assert response.json()["results"][0]["file_name"] == "a.png"


@pytest.mark.parametrize(
    "charset", ["punycode", "idna", "undefined", "unicode_escape", "utf-7", "base64", "nonsense"]
)
async def test_a_form_in_an_unusual_charset_is_malformed(
    client: httpx.AsyncClient, charset: str
) -> None:
    body = form_of(b'name="\xff-"; filename="\xff-"', b"x")
    headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}

    response = await client.post("/detect", content=body, headers=headers)

    assert (response.status_code, code_of(response)) == (400, "malformed_body")
    assert f"charset={charset}" in message_of(response)


async def test_ids_in_a_file_are_no_image(client: httpx.AsyncClient, png_bytes: bytes) -> None:
    answer = await client.post("/detect", files={"images": png_bytes, "image_ids": png_bytes})

    assert (answer.status_code, code_of(answer)) == (422, "invalid_request")


@pytest.mark.parametrize("charset", ["UTF-8", "us-ascii", "latin-1"])
async def test_a_form_may_say_its_charset(
    client: httpx.AsyncClient, png_bytes: bytes, charset: str
) -> None:
    body = form_of(b'name="images"; filename="a.png"', png_bytes)
    headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}

    response = await client.post("/detect", content=body, headers=headers)

    assert response.status_code == 200


@pytest.mark.parametrize("num_missing", [4, 9, 500])
async def test_a_form_that_is_cut_short_is_told_so(
    client: httpx.AsyncClient, num_missing: int
) -> None:
    body = form_of(b'name="images"; filename="a.png"', b"x" * 1000)

    response = await client.post("/detect", content=body[:-num_missing], headers=FORM)

    assert (response.status_code, code_of(response)) == (400, "malformed_body")
    assert "truncated" in message_of(response)


@pytest.mark.parametrize("content_type", [b"image/png", b"multipart/form-data; boundary=b"])
async def test_a_client_that_leaves_while_it_sends_is_not_an_error_of_the_service(
    app: FastAPI,
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    content_type: bytes,
) -> None:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"--b\r\n", "more_body": True},
        {"type": "http.disconnect"},
    ]

    await post_by_hand(app, messages, [(b"content-type", content_type)])

    metrics = (await client.get("/metrics")).text
    assert 'detr_rejects_total{code="client_gone"} 1.0' in metrics
    assert 'detr_rejects_total{code="internal_error"} 0.0' in metrics
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/detect/", "/detect/?threshold=0.5"])
async def test_images_may_be_posted_with_a_slash_at_the_end(
    client: httpx.AsyncClient, png_bytes: bytes, path: str
) -> None:
    response = await client.post(path, files={"images": png_bytes})

    assert response.status_code == 200
    assert '{path="/detect",status="200"} 1.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "got HEIC; convert it to JPEG"),
        (b"%PDF-1.7", "got PDF; convert its pages to JPEG"),
    ],
)
async def test_a_format_that_is_not_taken_is_named(
    client: httpx.AsyncClient, content: bytes, message: str
) -> None:
    response = await client.post("/detect", content=content)

    assert (response.status_code, code_of(response)) == (415, "unsupported_media_type")
    assert message in message_of(response)


async def test_too_many_pixels_are_refused(
    client: httpx.AsyncClient, encode: Callable[..., bytes]
) -> None:
    response = await client.post(
        "/detect", content=encode(np.zeros((500, 500, 3), np.uint8), "PNG")
    )

    assert (response.status_code, code_of(response)) == (422, "invalid_image")
    assert "at most 200,000 pixels, got 500 x 500 = 250,000" in message_of(response)


async def test_a_body_that_says_it_is_too_long_is_refused_unread(
    client: httpx.AsyncClient,
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 10
        raise AssertionError("the body was read")

    response = await client.post(
        "/detect", content=body(), headers={"Content-Length": str(MAX_BODY_BYTES + 1)}
    )

    assert (response.status_code, code_of(response)) == (413, "payload_too_large")


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=b"])
async def test_a_body_without_a_length_is_cut_at_the_limit(
    client: httpx.AsyncClient, content_type: str
) -> None:
    num_sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal num_sent
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(1000):
            num_sent += 10_000
            yield b"x" * 10_000

    response = await client.post("/detect", content=body(), headers={"Content-Type": content_type})

    assert (response.status_code, code_of(response)) == (413, "payload_too_large")
    assert num_sent <= MAX_BODY_BYTES + 10_000


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Nothing goes because nobody can reach it any more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("path", ["/detect", "/v1/vision/detection"])
async def test_the_files_of_a_form_are_gone_once_they_are_read(
    client: httpx.AsyncClient, png_bytes: bytes, path: str
) -> None:
    response = await client.post(path, files={"image": png_bytes})

    assert response.status_code == 200
    assert [one for one in gc.get_objects() if type(one) is FileInPieces and one.num_bytes] == []


@pytest.mark.parametrize("piece", [b"\r", b"\r\n-", b"x" * 4095, b"x" * 4096, b"\0" * 70_000])
def test_a_file_in_pieces_of_any_size_takes_little_more_than_its_bytes(piece: bytes) -> None:
    num_pieces = 300_000 // len(piece)
    file = FileInPieces()
    tracemalloc.start()

    for _ in range(num_pieces):
        file.write(bytes(bytearray(piece)))
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert file.num_bytes == num_pieces * len(piece)
    assert file.read() == piece * num_pieces
    assert held_bytes < 1.3 * file.num_bytes


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/detect", "/v1/vision/detection"])
@pytest.mark.parametrize(
    ("encoding", "status"),
    [("gzip", 415), ("br, gzip", 415), ("Identity", 200), ("", 200)],
)
async def test_a_compressed_body_is_refused_by_name(
    client: httpx.AsyncClient, png_bytes: bytes, path: str, encoding: str, status: int
) -> None:
    field = "images" if path == "/detect" else "image"

    response = await client.post(
        path, files={field: png_bytes}, headers={"Content-Encoding": encoding}
    )

    assert response.status_code == status
    assert (f"got {encoding!r}; send it as it is" in response.text) == (status == 415)
