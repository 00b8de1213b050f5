"""python -m service in a separate process: its start, and what it refuses."""

import gc
import os
import re
import shutil
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.__main__ import for_url, spare_what_lives_long

Start = Callable[..., Any]  # the fixture; settings in, a Process out


def test_it_tells_where_the_page_is_and_serves_it(start: Start, jpeg_bytes: bytes) -> None:
    process = start()

    address = process.read_address()
    process.wait_until_ready(address)

    assert "<title>detr-serve" in httpx.get(address).text
    answer = httpx.post(f"{address}/detect", files={"images": jpeg_bytes}).json()
    assert answer["results"][0]["detections"][0]["category_name"] == "red"


@pytest.mark.parametrize(
    ("host", "shown"),
    [("0.0.0.0", "localhost"), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.1", "10.0.0.1")],
)
def test_the_address_that_is_told_leads_to_the_service(host: str, shown: str) -> None:
    assert for_url(host) == shown


def test_a_missing_bundle_is_one_line_that_names_the_remedy(start: Start, tmp_path: Path) -> None:
    status, log = start(bundle=tmp_path / "none").end()

    assert status == 1
    assert re.fullmatch(r"error: .*none/manifest\.json: no bundle there.*make export.*\n", log)


def test_a_changed_byte_in_the_bundle_is_refused(
    start: Start, toy_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(toy_bundle, tmp_path / "toy")
    weights = bundle / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")

    status, log = start(bundle=bundle).end()

    assert status == 1
    assert re.fullmatch(r"error: .*weights\.bin: expected SHA-256 .*make export.*\n", log)


def test_a_pipe_in_place_of_a_bundles_file_is_one_line(
    start: Start, toy_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(toy_bundle, tmp_path / "toy")
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")

    status, log = start(bundle=bundle).end()

    assert status == 1
    assert re.fullmatch(r"error: .*model\.onnx: cannot be read: it is a named pipe.*\n", log)


def test_a_service_without_standard_streams_gives_their_numbers_to_nobody(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = start(launcher=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"], port=port)
    with httpx.Client(transport=httpx.HTTPTransport(retries=10)) as client:
        while client.get(f"http://127.0.0.1:{port}/readyz").status_code != 200:
            pass

    streams = [os.readlink(f"/proc/{process.popen.pid}/fd/{number}") for number in range(3)]
    process.stop()

    assert streams == ["/dev/null"] * 3
    assert process.end()[0] == 0


def test_a_port_in_use_is_reported(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        status, log = start(port=port).end()

    assert status == 1
    assert re.fullmatch(rf"error: cannot listen on 127\.0\.0\.1:{port}: .*DETR_PORT.*\n", log)


@pytest.mark.parametrize("most", [10, 20])  # the listening sockets take eight, uvloop the rest
def test_too_few_descriptors_are_reported(start: Start, most: int) -> None:
    few = ["sh", "-c", f'ulimit -n {most}; exec "$@"', "sh"]

    status, log = start(launcher=few).end()

    assert status == 1
    assert re.fullmatch(r"error: cannot listen on .*: Too many open files; .*ulimit -n.*\n", log)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("port", "http", "DETR_PORT: .*, got 'http'"),
        ("admin_key", "secret!", "DETR_ADMIN_KEY: expected at least 8 characters, got 7; "),
        ("max_queue", "1", "DETR_MAX_IMAGES .16. must not be above DETR_MAX_QUEUE .1."),
    ],
)
def test_a_wrong_setting_is_named(start: Start, name: str, value: str, message: str) -> None:
    status, log = start(**{name: value}).end()

    assert status == 1
    assert re.fullmatch(rf"error: .*{message}.*\n", log)


def test_a_wrong_host_and_a_mistyped_setting_are_named(start: Start) -> None:
    status, log = start(host="a..b", deadline="3").end()

    assert status == 1
    assert re.search(r"DETR_DEADLINE is not a setting .*did you mean 'DETR_DEADLINE_S'", log)
    assert re.search(r"error: cannot listen on a\.\.b:\d+: .*DETR_HOST.*\n$", log)


class Cycle:
    """Refers to itself, so that only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_the_collector_passes_over_what_lives_long_until_something_takes_its_place() -> None:
    served = Cycle()
    old_bundle = weakref.ref(served)
    try:
        spare_what_lives_long()
        del served
        gc.collect()
        assert old_bundle() is not None

        spare_what_lives_long()
        assert old_bundle() is None
    finally:
        gc.unfreeze()
