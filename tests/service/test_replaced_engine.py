"""Requests of an engine that a reload has replaced: counted, and answered when the service ends."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.errors import NotReady
from service.schemas import ModelRef
from service.serving import Serving
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import begin_and_hold, code_of


@pytest.fixture
def engines() -> list[FakeEngine]:
    return []


@pytest.fixture
def app(settings: Settings, engines: list[FakeEngine]) -> Iterator[FastAPI]:
    def open_engine(*_: object) -> FakeEngine:
        engines.append(FakeEngine(max_batch_size=4))
        engines[-1].gpu_memory_bytes = 5 * len(engines)
        return engines[-1]

    yield create_app(settings, open_engine)
    for engine in engines:
        engine.gate.open()


async def begin_to_replace(serving: Serving) -> asyncio.Task[ModelRef]:
    """Reload until another engine serves; the task goes on until the old one has finished."""
    old = serving.model().detector
    reload = serving.begin_reload()
    while serving.model().detector is old:
        await asyncio.sleep(0)
    return reload


async def hold_and_reload(
    app: FastAPI, client: httpx.AsyncClient, engines: list[FakeEngine], png_bytes: bytes
) -> "asyncio.Task[httpx.Response]":
    """Reload while the engine that served until then is at work on a request."""
    held = await begin_and_hold(client, engines[0], png_bytes)
    await begin_to_replace(app.state.serving)
    return held


@pytest.mark.anyio
async def test_a_stop_that_runs_out_of_patience_answers_requests_of_the_old_engine(
    app: FastAPI, client: httpx.AsyncClient, engines: list[FakeEngine], png_bytes: bytes
) -> None:
    held = await hold_and_reload(app, client, engines, png_bytes)

    app.state.serving.abort(NotReady("the service is stopping"))
    ended, _ = await asyncio.wait({held}, timeout=1)
    engines[0].gate.open()

    assert ended == {held}
    assert (held.result().status_code, code_of(held.result())) == (503, "not_ready")


@pytest.mark.anyio
async def test_images_that_wait_for_the_old_engine_count_for_the_queue(
    app: FastAPI, client: httpx.AsyncClient, engines: list[FakeEngine], png_bytes: bytes
) -> None:
    serving = app.state.serving
    with serving.model().detector.admit(4):
        reload = await begin_to_replace(serving)

        refused = await client.post("/detect", content=png_bytes)
    await reload

    assert (refused.status_code, code_of(refused)) == (503, "overloaded")


@pytest.mark.anyio
async def test_the_old_engine_counts_in_the_metrics_until_it_has_finished(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    serving = app.state.serving
    with serving.model().detector.admit(3):
        reload = await begin_to_replace(serving)
        with serving.model().detector.admit(1):
            both = (await client.get("/metrics")).text
    await reload
    after = (await client.get("/metrics")).text

    assert 'detr_queue_depth{model="toy"} 4.0' in both
    assert 'detr_gpu_memory_bytes{model="toy"} 15.0' in both
    assert 'detr_queue_depth{model="toy"} 0.0' in after
    assert 'detr_gpu_memory_bytes{model="toy"} 10.0' in after


@pytest.mark.anyio
async def test_the_end_waits_for_what_the_old_engine_had_admitted(
    app: FastAPI, client: httpx.AsyncClient, engines: list[FakeEngine], png_bytes: bytes
) -> None:
    held = await hold_and_reload(app, client, engines, png_bytes)

    closing = asyncio.ensure_future(app.state.serving.close())
    await asyncio.sleep(0.01)
    has_waited = not closing.done()
    engines[0].gate.open()
    await closing

    assert has_waited
    assert (await held).status_code == 200
    assert [engine.is_closed for engine in engines] == [True, True]
