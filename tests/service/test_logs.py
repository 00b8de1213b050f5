"""Log lines as JSON, and what is not logged."""

import fcntl
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from bundle.preprocess import decode_image
from service.boundary import log_access
from service.logs import JsonLines, PatientStream, set_up_logging


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


def test_a_line_can_be_read_whatever_the_encoding_of_the_stream() -> None:
    message = "é 😀 \udce9"
    record = logging.LogRecord("service", logging.WARNING, "", 1, message, None, None)

    line = JsonLines().format(record)

    for encoding in ("ascii", "latin-1", "utf-8"):
        written = line.encode(encoding, "backslashreplace")
        assert json.loads(written)["message"] == message


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


def test_at_level_debug_the_libraries_are_still_quiet() -> None:
    program = (
        "import logging; from service.logs import set_up_logging; "
        "set_up_logging('debug', log_format='text'); "
        "[logging.getLogger(name).debug('said') for name in ('PIL.PngImagePlugin', 'service.app')]"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stderr.splitlines()[0].endswith("DEBUG service.app: said")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Where to read and where to write; it holds 4 KiB."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_lines_that_nobody_reads_are_kept_and_then_lost(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    stream = PatientStream(writer, encoding="ascii", kept_bytes=2000)

    for number in range(100):
        stream.write(f"{number:4} {'ä' * 24}\n")  # 102 bytes
        stream.flush()
    text = os.read(reader, 4096)
    stream.flush()
    text += os.read(reader, 4096)

    lines = text.decode("ascii").splitlines()
    assert lines == [f"{number:4} " + "\\xe4" * 24 for number in range(len(lines))]
    assert 1900 < len(text) <= 4096 + 2000
    assert caplog.messages == [
        f"lines of the log that were lost, since nobody read them: {100 - len(lines)}"
    ]


def test_lines_that_cannot_be_written_are_lost(caplog: pytest.LogCaptureFixture) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        stream = PatientStream(full.fileno(), encoding="ascii")
        stream.write("one\ntwo\n")
        stream.flush()

    assert caplog.messages == []


def test_the_last_lines_wait_for_a_slow_reader(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = PatientStream(writer, encoding="ascii")
    stream.write("x" * 10_000)
    stream.flush()
    with ThreadPoolExecutor(1) as executor:
        pieces = executor.map(os.read, [reader] * 3, [4096] * 3)

        stream.flush_within(10)

    assert b"".join(pieces) == b"x" * 10_000


def test_a_service_whose_log_nobody_reads_answers_and_stops(
    pipe: tuple[int, int], toy_bundle: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {"BUNDLE": str(toy_bundle), "PORT": str(port), "LOG_LEVEL": "debug"}
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        env=os.environ | {f"DETR_{name}": value for name, value in settings.items()},
        stderr=pipe[1],
    )
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=10)) as client:
            for _ in range(100):  # lines of more than 100 bytes
                assert client.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
