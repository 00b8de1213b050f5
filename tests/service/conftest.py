"""Async tests run on asyncio, by anyio's own plugin; a service can be started as a process."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import running

MAX_BODY_BYTES = 100_000


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings(toy_bundle: Path) -> Settings:
    return Settings(
        bundle=toy_bundle,
        max_queue=4,
        max_images=3,
        max_body_bytes=MAX_BODY_BYTES,
        max_pixels=200_000,
        deadline_s=60,
    )


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(max_batch_size=4)


@pytest.fixture
async def app(settings: Settings, engine: FakeEngine) -> AsyncIterator[FastAPI]:
    yield create_app(settings, engine)
    engine.gate.open()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with running(app) as client:
        yield client
