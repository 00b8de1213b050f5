"""Async tests run on asyncio, by anyio's own plugin; a service can be started as a process."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from bundle.known_answers import read_known_answers, write_known_answers
from bundle.manifest import Bundle
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import running

MAX_BODY_BYTES = 100_000


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings(fake_bundle: Path) -> Settings:
    return Settings(
        bundle=fake_bundle,
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
    yield create_app(settings, lambda *_: engine)
    engine.gate.open()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with running(app) as client:
        yield client


@pytest.fixture(scope="session")
def fake_bundle(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle, with FakeEngine's known answers."""
    directory = tmp_path_factory.mktemp("bundles") / "fake"
    shutil.copytree(toy_bundle, directory)
    bundle = Bundle.load(directory)
    write_known_answers(
        directory,
        FakeEngine().run,
        preprocess=bundle.manifest.preprocess,
        images=[answer.image for answer in read_known_answers(directory)],
    )
    bundle.save()
    return directory
