"""Multipart forms, however their bytes arrive and whatever names their files have."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from service.errors import MalformedBody
from service.form import Form, FormFile, read_form
from service.settings import Settings

SETTINGS = Settings(bundle=Path("bundles/demo"))
HEADER = "multipart/form-data; boundary=b"


def read(pieces: Sequence[bytes], content_type: str = HEADER) -> Form:
    left = list(pieces)

    async def receive() -> dict[str, object]:
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    headers = [(b"content-type", content_type.encode("latin-1"))]
    scope = {"type": "http", "method": "POST", "headers": headers}
    return asyncio.run(read_form(Request(scope, receive), SETTINGS))


def part(disposition: bytes, content: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (disposition, content)


@given(
    st.lists(st.binary() | st.sampled_from([b"\r\n--", b"\r\n--bb", b"--b", b"\r"]), max_size=4),
    st.lists(st.integers(0, 300), max_size=8),
)
def test_a_form_is_the_same_however_its_bytes_arrive(
    contents: list[bytes], cuts: list[int]
) -> None:
    contents = [content for content in contents if b"\r\n--b" not in b"\r\n" + content]
    body = b"".join(part(b'name="images"; filename="a"', one) for one in contents) + b"--b--\r\n"
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]

    form = read([body[start:end] for start, end in pairwise(places)])

    assert form == [("images", FormFile("a", content)) for content in contents]


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('name="images"; filename="Gerät 1.png"'.encode(), "Gerät 1.png"),
        ('name="images"; filename="Gerät 1.png"'.encode("latin-1"), "Gerät 1.png"),
        (b"name=images; filename=a.png", "a.png"),
        (b'name="images"; filename="a%22b.png"', 'a"b.png'),  # as browsers write a quote
        (b'name="images"; filename="a\\"b.png"', 'a"b.png'),  # as curl did
        (b'name="images"; filename="50%.png"', "50%.png"),
        (b'name="images"; filename="C:\\photos\\a.png"', "a.png"),
        (b'filename="a;b=c.png" ; name="images"', "a;b=c.png"),
        (b'name="images"; filename=""', ""),
    ],
)
def test_a_file_keeps_the_name_that_the_client_gave_it(disposition: bytes, name: str) -> None:
    assert read([part(disposition, b"x") + b"--b--"]) == [("images", FormFile(name, b"x"))]


def test_text_is_in_the_charset_of_the_form() -> None:
    body = part(b"name=image_ids", "ü".encode()) + b"--b--"

    assert read([body]) == [("image_ids", "ü")]
    assert read([body], f"{HEADER}; charset=latin-1") == [("image_ids", "Ã¼")]


def test_what_follows_the_closing_boundary_is_passed_over() -> None:
    body = part(b"name=image_ids", b"1") + b"--b--"

    assert read([body, b"\r\n", b"--b\r\nmore"]) == [("image_ids", "1")]


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"--b--", "multipart/form-data", "no boundary"),
        (b"", HEADER, "no part begins in it"),
        (b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--", HEADER, "Content-Disposition"),
        (b"--b\nContent-Disposition: form-data; name=a\n\nx\n--b--", HEADER, "line break"),
        (part(b"name=a", b"x" * 65_537) + b"--b--", HEADER, "'a' has no file name and more than"),
        (part(b"name=a" + b"a" * 5000, b"x") + b"--b--", HEADER, "header length exceeded"),
    ],
)
def test_what_is_wrong_with_a_form_is_told(body: bytes, content_type: str, reason: str) -> None:
    with pytest.raises(MalformedBody, match=reason):
        read([body], content_type)
