"""Log lines as JSON."""

import json
import logging
from typing import Any

import pytest

from service.boundary import log_access
from service.logs import JsonLines


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
