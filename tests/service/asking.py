"""Asking an app over ASGI, and reading what it answers."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from tests.fakes import FakeEngine


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app):
        await app.state.startup
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


def code_of(response: httpx.Response) -> str:
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message"}
    return body["error"]["code"]


def message_of(response: httpx.Response) -> str:
    return response.json()["error"]["message"]


async def post_by_hand(
    app: FastAPI, messages: list[dict[str, Any]], headers: list[tuple[bytes, bytes]]
) -> None:
    """Post these messages to /detect; the answer goes nowhere."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/detect",
        "query_string": b"",
        "headers": headers,
    }

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        pass

    await app(scope, receive, send)


async def begin_and_hold(
    client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes
) -> "asyncio.Task[httpx.Response]":
    """Keep the engine busy with one image until its gate is opened."""
    engine.gate.shut()
    for _ in engine.batch_shapes:  # arrivals of the warm-up
        engine.gate.wait_for_arrival()
    request = asyncio.ensure_future(client.post("/detect", content=png_bytes))
    await asyncio.to_thread(engine.gate.wait_for_arrival)
    return request
