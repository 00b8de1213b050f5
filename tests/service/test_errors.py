"""Each error of the API, with its status and its code."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service import errors
from service.app import create_app
from service.error_bodies import error_body
from service.settings import Settings
from tests.fakes import POISON, FakeEngine
from tests.service.asking import begin_and_hold, code_of, message_of, post_by_hand, running

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def poison_bytes(encode: Callable[..., bytes]) -> bytes:
    return encode(np.full((96, 128, 3), POISON, np.uint8), "PNG")


def test_a_message_may_name_a_path_that_is_no_text() -> None:
    error = errors.ReloadRefused("b\udcff/manifest.json: no bundle there")

    for path in ("/admin/reload", "/v1/vision/detection", "/v2"):
        assert rb"b\\udcff/manifest.json" in error_body(error, path)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("threshold=1.5", "threshold: .*less than or equal to 1, got '1.5'"),
        ("threshold=-0.1", "threshold"),
        ("threshold=nan", "threshold"),
        ("threshold=half", "threshold"),
        ("top_k=0", "top_k"),
        ("num_detections=0", "num_detections"),
        ("num_detections=4", "num_detections: expected at most 3, .* 'toy' .*, got 4"),
        ("nms_iou=1.1", "nms_iou"),
        ("format=xml", "format: .*'detections' or 'coco'"),
        (
            "treshold=0.5",
            "'treshold': did you mean 'threshold'. known are threshold, num_detections, ",
        ),
        ("Top-K=5", "'Top-K': did you mean 'top_k'"),
        ("page=5", "'page': known are threshold"),
    ],
)
async def test_parameters_out_of_range(
    client: httpx.AsyncClient, png_bytes: bytes, query: str, message: str
) -> None:
    response = await client.post(f"/detect?{query}", content=png_bytes)

    assert (response.status_code, code_of(response)) == (422, "invalid_request")
    assert re.search(message, message_of(response))


async def test_of_many_faults_the_first_are_described(
    client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    query = "&".join(f"p{number}" for number in range(1000))

    response = await client.post(f"/detect?{query}", content=png_bytes)

    assert (response.status_code, code_of(response)) == (422, "invalid_request")
    assert message_of(response).count("unknown parameter") == 5
    assert message_of(response).endswith("; and 995 more")


async def test_an_unknown_class_is_refused_with_close_names(
    client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    response = await client.post("/detect?classes=gren", content=png_bytes)

    assert (response.status_code, code_of(response)) == (422, "unknown_class")
    assert "'green'" in message_of(response)
    assert "GET /model" in message_of(response)


async def test_a_drawing_of_several_images_is_not_acceptable(
    client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    response = await client.post(
        "/detect", files=[("images", png_bytes)] * 2, headers={"Accept": "image/png"}
    )

    assert (response.status_code, code_of(response)) == (406, "not_acceptable")


async def test_one_bad_image_fails_its_request_by_name_and_no_other(
    client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes
) -> None:
    engine.batch_shapes.clear()
    files = [("images", ("good.png", png_bytes)), ("images", ("bad.png", png_bytes[:99]))]

    bad, good = await asyncio.gather(
        client.post("/detect", files=files), client.post("/detect", content=png_bytes)
    )

    assert (bad.status_code, code_of(bad)) == (422, "invalid_image")
    assert "image 1 ('bad.png')" in message_of(bad)
    assert good.status_code == 200
    assert engine.num_images == 1


async def test_an_engine_failure_hits_only_the_guilty_request(
    client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes, poison_bytes: bytes
) -> None:
    held = await begin_and_hold(client, engine, png_bytes)
    others = [
        asyncio.ensure_future(client.post("/detect", content=content))
        for content in (png_bytes, poison_bytes, png_bytes)
    ]
    await asyncio.sleep(0)

    engine.gate.open()
    responses = await asyncio.gather(held, *others)

    assert [response.status_code for response in responses] == [200, 200, 500, 200]
    assert code_of(responses[2]) == "engine_failure"
    assert 'detr_engine_failures_total{model="toy"} 1.0' in (await client.get("/metrics")).text


async def test_a_full_queue_is_overloaded(
    client: httpx.AsyncClient, engine: FakeEngine, app: FastAPI, png_bytes: bytes
) -> None:
    held = await begin_and_hold(client, engine, png_bytes)

    with app.state.serving.model().detector.admit(4, client="127.0.0.1"):
        response = await client.post("/detect", content=png_bytes)

    assert (response.status_code, code_of(response)) == (503, "overloaded")
    assert int(response.headers["Retry-After"]) >= 1
    assert 'detr_rejects_total{code="overloaded"} 1.0' in (await client.get("/metrics")).text
    engine.gate.open()
    assert (await held).status_code == 200


async def test_an_overloaded_service_does_not_read_the_body_it_refuses(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    num_read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal num_read
        num_read += 1
        yield b"x" * 1000

    with app.state.serving.model().detector.admit(4, client="127.0.0.1"):
        response = await client.post("/detect", content=body())

    assert (response.status_code, code_of(response)) == (503, "overloaded")
    assert num_read == 0


async def test_a_passed_deadline_is_a_gateway_timeout(
    settings: Settings, engine: FakeEngine, png_bytes: bytes
) -> None:
    app = create_app(settings.model_copy(update={"deadline_s": 0.5}), lambda *_: engine)
    async with running(app) as client:
        held = await begin_and_hold(client, engine, png_bytes)

        response = await client.post("/detect", content=png_bytes)

        assert (response.status_code, code_of(response)) == (504, "deadline_exceeded")
        engine.gate.open()
        assert (await held).status_code == 200


async def test_a_client_that_leaves_is_not_computed_for(
    app: FastAPI, client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes
) -> None:
    held = await begin_and_hold(client, engine, png_bytes)
    engine.batch_shapes.clear()
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": png_bytes, "more_body": False},
        {"type": "http.disconnect"},
    ]

    await post_by_hand(app, messages, [])
    engine.gate.open()

    assert (await held).status_code == 200
    assert engine.batch_shapes == []
    assert app.state.serving.model().detector._batcher.depth == 0
    assert 'detr_rejects_total{code="client_gone"} 1.0' in (await client.get("/metrics")).text


async def test_every_fault_is_counted_from_nought(fake_bundle: Path) -> None:
    bundles = f"small={fake_bundle},large={fake_bundle}"
    app = create_app(Settings(bundles=bundles), lambda *_: FakeEngine())

    async with running(app) as client:
        metrics = (await client.get("/metrics")).text

    zeros = set(re.findall(r"^detr_(.*)_total{(.*)} 0\.0$", metrics, flags=re.M))
    expected = {("rejects", f'code="{kind.code}"') for kind in errors.error_kinds()}
    for name in ("small", "large"):
        expected.add(("engine_failures", f'model="{name}"'))
        expected |= {
            ("reloads", f'model="{name}",result="{end}"') for end in ("swapped", "refused")
        }
    assert expected <= zeros


def test_each_service_error_is_reached_by_a_test_beside_this() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))

    codes = {kind.code for kind in errors.error_kinds()}
    assert {code for code in codes if f'"{code}"' not in tests} == set()
