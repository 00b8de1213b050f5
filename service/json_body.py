"""Images in a JSON body: base64 text under the field names of the form."""

import asyncio
import base64
import binascii
import json
import re
import string
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from pydantic_core import from_json

from service.errors import InvalidImage, InvalidRequest, MalformedBody, NoImage
from service.json_names import name_given_twice
from service.names import did_you_mean
from service.schemas import FILE_FIELDS, ID_FIELD, DetectQuery

Parsed = TypeVar("Parsed")
_SHAPE = f'{{"{FILE_FIELDS[0]}": ["<base64>"]}}'
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)
_DATA_URI = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
_SPACES = string.whitespace.encode()
_STEP = 1 << 20  # characters decoded at a time: Python's lock is held meanwhile
_MAX_VALUES = 10_000  # far above any honest body; parsing millions would delay everyone


# One body at a time: parsing holds the GIL, so in parallel it would take as long and use all the
# memory at once, up to three times the size of each body.
_PARSER = ThreadPoolExecutor(1, thread_name_prefix="json")


class JsonImages(NamedTuple):
    """The files of a JSON body, and the ids given with them, if any."""

    files: list[bytes]
    image_ids: list[int] | None


async def parse_in_turn(parse: Callable[[], Parsed]) -> Parsed:
    """Run the parser of a JSON body off the event loop, one body after another."""
    return await asyncio.get_running_loop().run_in_executor(_PARSER, parse)


def read_json(body: bytes, *, max_values: int = _MAX_VALUES) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        MalformedBody: not JSON.
        InvalidRequest: not an object, or one with too many values or a name given twice.
    """
    if body.count(b",") >= max_values:
        raise InvalidRequest(f"expected at most {max_values} values in a JSON body, got more")
    try:
        body = body.removeprefix(BOM_UTF8)  # which PowerShell writes
        parsed = from_json(body)  # twice as fast as json, which matters: it holds Python's lock
    except ValueError as error:
        raise MalformedBody(f"the JSON body cannot be read: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"expected a JSON object, got {kind_of(parsed)}")
    _require_once(body)
    return parsed


def read_json_images(body: bytes) -> JsonImages:
    """The images of a body like {"images": ["<base64>"], "image_ids": [7]}.

    Raises:
        MalformedBody: not JSON.
        InvalidRequest: see `read_json`; or URLs, unknown names, or values of the wrong type.
        NoImage: there is no image under a known name.
        InvalidImage: text that is not base64.
    """
    fields = read_json(body)
    _refuse_urls(fields)
    _check_names(fields)
    texts = [text for name in FILE_FIELDS for text in _as_list(fields.get(name, []))]
    files = [decode_base64(text, f"image {index}") for index, text in enumerate(texts)]
    if not files:
        raise NoImage(f"expected an image, got a JSON body without one; send {_SHAPE}")
    return JsonImages(files, _read_ids(fields[ID_FIELD]) if ID_FIELD in fields else None)


def decode_base64(text: object, subject: str) -> bytes:
    """The bytes of base64 text, which may be broken into lines or be a data URI.

    Raises:
        InvalidRequest: not text.
        InvalidImage: not base64; the message names `subject`.
    """
    if not isinstance(text, str):
        raise InvalidRequest(f"{subject}: expected base64 text, got {kind_of(text)}")
    prefix = _DATA_URI.match(text)
    encoded = text[prefix.end() :] if prefix else text
    try:
        return b"".join(_decode(encoded))
    except (binascii.Error, ValueError) as error:
        raise InvalidImage(
            f"{subject}: expected the file's content as base64 text, got {encoded[:40]!r}: {error}"
        ) from error


def _decode(encoded: str) -> Iterator[bytes]:
    """The bytes of base64 text, step by step; split at its spaces, it could take a gigabyte."""
    left = b""
    for start in range(0, len(encoded), _STEP):
        digits = left + encoded[start : start + _STEP].encode("ascii").translate(None, _SPACES)
        end = max(0, len(digits) - 1) // 4 * 4  # the last digits may have padding
        if b"=" in digits[:end]:
            raise ValueError("padding before the end")
        yield base64.b64decode(digits[:end], validate=True)
        left = digits[end:]
    yield base64.b64decode(left, validate=True)


def kind_of(value: object) -> str:
    """The JSON type of a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds[type(value)]


def _require_once(body: bytes) -> None:
    try:
        name = name_given_twice(body)
    except ValueError as error:
        raise InvalidRequest(f"JSON body: {error}") from error
    if name is not None:
        raise InvalidRequest(
            f"{name[:100]!r} is given more than once in an object of the JSON body; for several "
            "values write a list"
        )


def _refuse_urls(fields: dict[str, Any]) -> None:
    for text in _texts(list(fields.values())):
        if _URL.match(text):
            raise InvalidRequest(
                f"images are not fetched from URLs, got {text.strip()[:100]!r}; send the file "
                f"itself: {_SHAPE}, or curl -F {FILE_FIELDS[0]}=@photo.jpg"
            )


def _texts(values: list[Any]) -> Iterator[str]:
    """All strings among the values, also one level down in lists and objects."""
    for value in values:
        inner = value.values() if isinstance(value, dict) else _as_list(value)
        yield from (text for text in inner if isinstance(text, str))


def _check_names(fields: dict[str, Any]) -> None:
    known = (*FILE_FIELDS, ID_FIELD)
    for name in fields:
        if name in DetectQuery.model_fields:
            raise InvalidRequest(
                f"{name!r} belongs in the query, not in the body: /detect?{name}=..."
            )
        if name not in known:
            kind = InvalidRequest if set(fields) & set(FILE_FIELDS) else NoImage
            raise kind(
                f"unknown name {name[:100]!r} in the JSON body: {did_you_mean(name, known)}"
                f"known are {', '.join(known)}"
            )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_ids(value: Any) -> list[int]:
    ids = _as_list(value)
    if all(type(one) is int for one in ids):
        return ids
    raise InvalidRequest(f"expected whole numbers in {ID_FIELD!r}, got {json.dumps(value)[:100]}")
