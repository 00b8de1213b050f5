"""The life of the app: start, readiness, draining, end."""

import asyncio
import hashlib
from collections import Counter
from io import BufferedReader
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from bundle.postprocess import RawOutput
from engines.base import EngineFailure
from service.app import create_app, stop_taking_requests
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import begin_and_hold, code_of, running

pytestmark = pytest.mark.anyio


async def test_readiness_is_red_until_the_engine_is_warm(
    app: FastAPI, engine: FakeEngine, png_bytes: bytes
) -> None:
    engine.gate.shut()
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        loading = await client.get("/readyz")
        early = await client.post("/detect", content=png_bytes)
        alive = await client.get("/healthz")
        engine.gate.open()
        await app.state.startup
        ready = await client.get("/readyz")

    assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
    assert (early.status_code, code_of(early)) == (503, "not_ready")
    assert alive.status_code == 200
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    assert engine.is_closed


async def test_a_service_that_is_stopped_while_it_loads_never_turns_green(
    app: FastAPI, engine: FakeEngine
) -> None:
    engine.gate.shut()
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        stop_taking_requests(app)
        engine.gate.open()
        await app.state.startup
        ready = await client.get("/readyz")

    assert (ready.status_code, ready.json()) == (503, {"status": "draining"})


async def test_a_stopping_service_is_red_but_answers(
    app: FastAPI, client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    stop_taking_requests(app)

    ready = await client.get("/readyz")
    response = await client.post("/detect", content=png_bytes)

    assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
    assert response.status_code == 200
    assert response.headers["Connection"] == "close"


async def test_the_end_of_the_lifespan_answers_what_was_admitted(
    app: FastAPI, engine: FakeEngine, png_bytes: bytes
) -> None:
    is_released = asyncio.Event()

    def release() -> None:
        engine.gate.open()
        is_released.set()

    async with running(app) as client:
        held = await begin_and_hold(client, engine, png_bytes)
        asyncio.get_running_loop().call_later(0.05, release)

    assert is_released.is_set()
    assert (await held).status_code == 200


class FailingEngine(FakeEngine):
    def run(self, images: np.ndarray, padding_mask: np.ndarray) -> RawOutput:
        raise EngineFailure("no memory")


async def test_an_engine_that_cannot_run_ends_the_process(settings: Settings) -> None:
    engine = FailingEngine()
    is_stopped = asyncio.Event()
    app = create_app(settings, lambda *_: engine, on_failure=is_stopped.set)

    async with running(app) as client:
        ready = await client.get("/readyz")

    assert is_stopped.is_set()
    assert app.state.serving.failure == "known answers, batch of 1 at 64x85: no memory"
    assert ready.status_code == 503


def test_a_missing_bundle_fails_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make export"):
        create_app(Settings(bundle=tmp_path))


async def test_a_start_reads_every_file_of_the_bundle_once_to_check_it(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[str] = Counter()
    file_digest = hashlib.file_digest

    def counted(file: BufferedReader, algorithm: str) -> Any:
        hashed[str(Path(file.name).relative_to(toy_bundle))] += 1
        return file_digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)

    async with running(create_app(Settings(bundle=toy_bundle))):
        pass

    assert hashed == dict.fromkeys(
        ("known-answers.npz", "model.onnx", "samples/1.png", "weights.bin"), 1
    )
