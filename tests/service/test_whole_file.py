"""Answers with files, also of a file system that hangs."""

import asyncio
import os
from functools import partial
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.errors import NotReady
from service.pages import _ASSETS
from service.serving import Serving
from service.whole_file import PIECE_BYTES, FileThread
from tests.fakes import Gate

pytestmark = pytest.mark.anyio


class PathBehindGate(type(Path())):  # type: ignore[misc]
    """A path on a file system that does not answer while the gate is shut."""

    gate: Gate

    def stat(self, **options: bool) -> os.stat_result:
        self.gate.pass_through()
        return super().stat(**options)


@pytest.fixture
def gate(app: FastAPI) -> Gate:
    """Before the files of the bundle that `app` serves."""
    PathBehindGate.gate = Gate()
    serving: Serving = app.state.serving
    detector = serving.model().detector
    detector.bundle = detector.bundle._replace(directory=PathBehindGate(detector.bundle.directory))
    return PathBehindGate.gate


async def test_a_file_system_that_hangs_holds_up_no_other_request(
    app: FastAPI, client: httpx.AsyncClient, gate: Gate
) -> None:
    app.state.files = FileThread(limit_s=1)
    gate.shut()

    refused = await asyncio.gather(*(client.get("/samples/1.png") for _ in range(3)))
    health = await client.get("/healthz")
    gate.open()
    answer = await client.get("/samples/1.png")

    assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [
        (503, "not_ready")
    ] * 3
    assert health.status_code == 200
    assert answer.status_code == 200


async def test_a_call_that_is_given_up_before_its_turn_is_not_made() -> None:
    gate, made = Gate(), list[str]()
    thread = FileThread(limit_s=1)
    gate.shut()

    with pytest.raises(NotReady, match=r"within 1 s"):
        await thread.run(gate.pass_through)
    with pytest.raises(NotReady):
        await thread.run(partial(made.append, "given up"))
    gate.open()
    await thread.run(partial(made.append, "in time"))

    assert made == ["in time"]


async def test_a_long_file_is_sent_whole(client: httpx.AsyncClient) -> None:
    response = await client.get("/page/swagger-ui.js")

    content = _ASSETS["swagger-ui.js"].read_bytes()
    assert len(content) > 2 * PIECE_BYTES
    assert response.content == content
    assert response.headers["Content-Length"] == str(len(content))
