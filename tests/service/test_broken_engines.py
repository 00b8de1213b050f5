"""Engines that hang, fail or exit: everyone is answered, and the process ends with one line."""

import asyncio
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI

from bundle.postprocess import RawOutput
from engines.base import Engine, EngineFailure
from service.__main__ import GRACE_S
from service.app import create_app
from service.errors import NotReady
from service.settings import Settings
from tests.fakes import POISON, FakeEngine
from tests.server_process import Process
from tests.service.asking import code_of, message_of, running
from tests.service.breaking_service import BREAK

Break = Callable[..., Process]


@pytest.fixture
def begin(start: Callable[..., Process], fake_bundle: Path) -> Break:
    """Start the service with an engine that has a fault."""

    def begin(fault: str, **settings: object) -> Process:
        return start("tests.service.breaking_service", fault, bundle=fake_bundle, **settings)

    return begin


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


@pytest.fixture(scope="session")
def breaking_bytes(encode: Callable[..., bytes]) -> bytes:
    return encode(np.full((96, 128, 3), BREAK, np.uint8), "PNG")


@pytest.fixture(scope="session")
def poison_bytes(encode: Callable[..., bytes]) -> bytes:
    return encode(np.full((96, 128, 3), POISON, np.uint8), "PNG")


def reasons(log: str) -> list[str]:
    return re.findall(r"cannot serve: (.*)", log)


def test_an_engine_that_hangs_answers_everyone_and_ends_the_process(
    begin: Break, threads: ThreadPoolExecutor, breaking_bytes: bytes
) -> None:
    process = begin("hangs", hang_floor_s=1)
    address = process.start()

    answers = threads.map(
        lambda content: httpx.post(f"{address}/detect", content=content, timeout=60),
        [breaking_bytes] * 6,
    )

    assert {(answer.status_code, code_of(answer)) for answer in answers} == {(503, "not_ready")}
    status, log = process.end()
    assert status == 1
    assert reasons(log) == ["the engine has not ended a batch of 1 within 1.0 s"]
    assert "Traceback" not in log


def test_a_decoder_that_hangs_answers_everyone_and_ends_the_process(
    begin: Break, threads: ThreadPoolExecutor, breaking_bytes: bytes
) -> None:
    process = begin("decoder-hangs", hang_floor_s=1, hang_factor=1, deadline_s=2, decode_threads=1)
    address = process.start()
    last = threads.submit(httpx.post, f"{address}/detect", content=breaking_bytes, timeout=60)
    time.sleep(1)

    answers = threads.map(
        lambda content: httpx.post(f"{address}/detect", content=content, timeout=60),
        [breaking_bytes] * 3,
    )

    assert last.result().status_code in (503, 504)  # its deadline is as long
    assert {(answer.status_code, code_of(answer)) for answer in answers} == {(503, "not_ready")}
    status, log = process.end()
    assert status == 1
    assert reasons(log) == ["an image was not decoded within 2 s"]
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("fault", "until_begun"),
    [
        ("hangs", "detr_image_pixels_count 0"),
        ("decoder-hangs", 'detr_queue_depth{model="toy"} 0.0'),
    ],
)
def test_a_stop_does_not_wait_for_an_engine_or_a_decoder_that_hangs(
    begin: Break,
    threads: ThreadPoolExecutor,
    breaking_bytes: bytes,
    fault: str,
    until_begun: str,
) -> None:
    process = begin(fault, drain_timeout_s=1)
    address = process.start()
    asked = threads.submit(httpx.post, f"{address}/detect", content=breaking_bytes, timeout=60)
    while until_begun in httpx.get(f"{address}/metrics").text:
        pass

    process.stop()

    assert asked.result().status_code == 503
    assert process.end()[0] == 0


def test_an_engine_that_fails_every_time_ends_the_process(
    begin: Break, breaking_bytes: bytes
) -> None:
    process = begin("fails", max_failures=3)
    address = process.start()

    answers = [httpx.post(f"{address}/detect", content=breaking_bytes) for _ in range(3)]

    assert {(answer.status_code, code_of(answer)) for answer in answers} == {
        (500, "engine_failure")
    }
    status, log = process.end()
    (reason,) = reasons(log)
    assert status == 1
    assert re.match(r"batches failed in a row: 3, then a known image too: .*MemoryError", reason)


@pytest.mark.anyio
async def test_images_that_fail_do_not_end_a_service_whose_engine_works(
    settings: Settings, poison_bytes: bytes, png_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings.model_copy(update={"max_failures": 2}), lambda *_: FakeEngine())

    async with running(app) as client:
        failed = [await client.post("/detect", content=poison_bytes) for _ in range(5)]
        ready = await client.get("/readyz")
        good = await client.post("/detect", content=png_bytes)

    assert {answer.status_code for answer in failed} == {500}
    assert (ready.status_code, good.status_code) == (200, 200)
    assert "the images are at fault" in caplog.text


class Breaking(FakeEngine):
    """An engine that fails on everything once it is broken."""

    is_broken = False

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        if self.is_broken:
            raise EngineFailure("broken")
        return super().run(images, padding_mask)


@pytest.mark.anyio
async def test_an_engine_that_breaks_is_given_up_though_its_bundle_has_gone(
    settings: Settings, fake_bundle: Path, tmp_path: Path, png_bytes: bytes
) -> None:
    has_failed = asyncio.Event()
    bundle = shutil.copytree(fake_bundle, tmp_path / "bundle")
    engine = Breaking(max_batch_size=4)
    app = create_app(
        settings.model_copy(update={"bundle": bundle, "max_failures": 1}),
        lambda *_: engine,
        on_failure=has_failed.set,
    )

    async with running(app) as client:
        engine.is_broken = True
        shutil.rmtree(bundle)
        await client.post("/detect", content=png_bytes)
        await asyncio.wait_for(has_failed.wait(), timeout=5)

    assert "then a known image too: broken" in app.state.serving.failure


@pytest.mark.anyio
async def test_a_service_with_a_broken_engine_is_red_and_refuses(
    settings: Settings, engine: FakeEngine, png_bytes: bytes
) -> None:
    is_stopped = asyncio.Event()
    app = create_app(
        settings.model_copy(update={"hang_floor_s": 0.2}),
        lambda *_: engine,
        on_failure=is_stopped.set,
    )

    async with running(app) as client:
        engine.gate.shut()
        held = await client.post("/detect", content=png_bytes)
        ready = await client.get("/readyz")
        late = await client.post("/detect", content=png_bytes)
        engine.gate.open()

    assert is_stopped.is_set()
    assert (held.status_code, code_of(held)) == (503, "not_ready")
    assert int(held.headers["Retry-After"]) >= 1
    assert (ready.status_code, ready.json()) == (503, {"status": "failed"})
    assert (late.status_code, code_of(late)) == (503, "not_ready")


# --- starts that fail


def test_a_start_that_hangs_ends_the_process(begin: Break) -> None:
    status, log = begin("hangs-at-start", start_timeout_s=1).end()

    assert status == 1
    (reason,) = reasons(log)
    assert reason.startswith("the engine is not ready after 1 s; it hangs, or DETR_START_TIMEOUT_S")
    assert "Traceback" not in log


def test_a_start_that_exits_ends_the_process_with_one_line(begin: Break) -> None:
    status, log = begin("exits-at-start").end()

    assert status == 1
    assert reasons(log) == ["SystemExit: a runtime that cannot be loaded"]
    assert "Traceback" not in log


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("no such op"), KeyboardInterrupt(), TypeError("two\nlines")],
)
async def test_a_start_that_raises_anything_is_reported_in_one_line(
    settings: Settings, error: BaseException
) -> None:
    is_stopped = asyncio.Event()

    def fail(*_: object) -> Engine:
        raise error

    app = create_app(settings, fail, on_failure=is_stopped.set)
    async with running(app) as client:
        ready = await client.get("/readyz")

    assert is_stopped.is_set()
    assert ready.json() == {"status": "failed"}
    assert app.state.serving.failure.startswith(type(error).__name__)
    assert "\n" not in app.state.serving.failure


def test_an_engine_that_cannot_be_closed_does_not_hold_the_process(begin: Break) -> None:
    process = begin("hangs-at-end", drain_timeout_s=0.1)
    process.start()

    process.stop()

    status, log = process.end()
    assert status == 1
    assert f"still not stopped after {0.1 + GRACE_S:g} s" in log


@pytest.mark.anyio
async def test_an_engine_that_was_given_up_is_left_alone(app: FastAPI, engine: FakeEngine) -> None:
    async with running(app):
        app.state.serving.abort(NotReady("the engine hangs"))

    assert not engine.is_closed


def test_a_stop_while_the_engine_is_loading_ends_at_once(begin: Break) -> None:
    process = begin("hangs-at-start")
    process.read_address()

    process.popen.send_signal(signal.SIGTERM)

    assert process.end()[0] == 0


@pytest.mark.anyio
async def test_an_engine_that_runs_out_of_memory_fails_its_request_only(
    settings: Settings, png_bytes: bytes
) -> None:
    class Forgetful(FakeEngine):
        is_out_of_memory = False

        def run(self, images, padding_mask):
            if self.is_out_of_memory:
                raise MemoryError
            return super().run(images, padding_mask)

    engine = Forgetful()
    async with running(create_app(settings, lambda *_: engine)) as client:
        engine.is_out_of_memory = True
        bad = await client.post("/detect", content=png_bytes)
        engine.is_out_of_memory = False
        good = await client.post("/detect", content=png_bytes)

    assert (bad.status_code, good.status_code) == (500, 200)
    assert "the engine raised MemoryError" in message_of(bad)
