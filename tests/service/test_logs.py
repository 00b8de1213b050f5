"""Log lines as JSON, and what is not logged."""

import json
import logging
import struct
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from bundle.preprocess import decode_image
from service.boundary import log_access
from service.logs import JsonLines, set_up_logging


def line_of(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    text = JsonLines().format(caplog.records[-1])
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


def test_a_message_is_an_object_with_its_time(caplog):
    logging.getLogger("service").warning('two\nlines, "quoted", %s', "ü")

    line = line_of(caplog)

    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "service",
        "message": 'two\nlines, "quoted", ü',
    }


def test_the_line_of_a_request_has_its_fields(caplog):
    caplog.set_level(logging.INFO)

    log_access({"method": "POST", "status": 200, "duration_ms": 1.5, "client": None})

    line = line_of(caplog)
    assert line.items() >= {"method": "POST", "status": 200, "duration_ms": 1.5}.items()
    assert line["client"] is None
    assert "message" not in line


def test_an_error_has_its_trace(caplog):
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("service").exception("a request failed")

    line = line_of(caplog)

    assert line["message"] == "a request failed"
    assert "ValueError: broken" in line["exception"]


def test_odd_tags_of_an_image_are_not_written_to_the_log(encode: Callable[..., bytes]) -> None:
    tags = b"".join(struct.pack("<HHII", number, 7, 999, 8) for number in range(1000, 1100))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 100) + tags

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_up_logging("info", log_format="text")
        pixels = decode_image(encode(Image.new("RGB", (5, 7)), "PNG", exif=exif))

    assert pixels.shape == (7, 5, 3)
    assert caught == []
