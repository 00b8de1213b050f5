"""The HTTP API through an ASGI client: answers, every error, and the life of the app."""

import asyncio
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI
from PIL import Image

from bundle.manifest import Manifest
from bundle.postprocess import RawOutput
from engines.base import EngineFailure
from service import errors
from service.app import create_app, stop_taking_requests
from service.settings import Settings
from tests.fakes import POISON, FakeEngine
from tests.service.asking import code_of, message_of, post_by_hand, running

pytestmark = pytest.mark.anyio

OPENAPI = Path(__file__).parents[1] / "data" / "openapi.json"


@pytest.fixture(scope="session")
def poison_bytes(encode: Callable[..., bytes]) -> bytes:
    return encode(np.full((96, 128, 3), POISON, np.uint8), "PNG")


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


# --- answers


async def test_the_toy_bundle_finds_what_is_in_the_picture(
    toy_bundle: Path, png_bytes: bytes
) -> None:
    async with running(create_app(Settings(bundle=toy_bundle))) as client:
        response = await client.post("/detect", files={"images": ("scene.png", png_bytes)})

    assert response.status_code == 200
    (result,) = response.json()["results"]
    assert result["file_name"] == "scene.png"
    assert (result["width"], result["height"]) == (128, 96)
    red, green = result["detections"]
    assert (red["category_id"], red["category_name"]) == (10, "red")
    assert red["score"] == pytest.approx(230 / 255, abs=0.01)
    assert red["bbox"] == pytest.approx([16, 24, 48, 48], abs=3)
    assert green["category_name"] == "green"


async def test_an_answer_names_the_model(client: httpx.AsyncClient, png_bytes: bytes) -> None:
    response = await client.post("/detect", content=png_bytes)

    model = response.json()["model"]
    assert (model["name"], model["variant"]) == ("toy", "two_stage")
    assert re.fullmatch("[0-9a-f]{12}", model["version"])


@pytest.mark.parametrize("field", ["images", "image", "file"])
async def test_files_are_taken_under_three_names(
    client: httpx.AsyncClient, png_bytes: bytes, field: str
) -> None:
    response = await client.post("/detect", files={field: ("a.png", png_bytes)})

    assert response.status_code == 200
    assert response.json()["results"][0]["file_name"] == "a.png"


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", None],
)
async def test_a_raw_body_is_an_image_whatever_its_type(
    client: httpx.AsyncClient, png_bytes: bytes, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}

    response = await client.post("/detect", content=png_bytes, headers=headers)

    assert response.status_code == 200
    assert response.json()["results"][0]["file_name"] is None


async def test_several_images_are_answered_in_their_order(
    client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes, encode: Callable[..., bytes]
) -> None:
    tall = encode(np.zeros((100, 50, 3), np.uint8), "PNG")
    files = [("images", (name, data)) for name, data in zip("ab", [png_bytes, tall], strict=True)]

    response = await client.post("/detect", files=files)

    results = response.json()["results"]
    assert [(r["image_id"], r["file_name"]) for r in results] == [(0, "a"), (1, "b")]
    assert [(r["width"], r["height"]) for r in results] == [(128, 96), (50, 100)]
    assert results[1]["detections"][0]["bbox"] == [12.5, 25, 25, 50]


@pytest.mark.parametrize("ids", [["7,8"], ["7", "8"]], ids=["list", "repeated"])
async def test_coco_results_carry_the_ids_of_the_client(
    client: httpx.AsyncClient, png_bytes: bytes, ids: list[str]
) -> None:
    files = [("images", ("a.png", png_bytes)), ("images", ("b.png", png_bytes))]

    response = await client.post("/detect?format=coco", files=files, data={"image_ids": ids})

    box = {"category_id": 10, "bbox": [32, 24, 64, 48], "score": 0.9}
    assert response.json() == [{"image_id": 7, **box}, {"image_id": 8, **box}]


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ("", ["red"]),
        ("threshold=0", ["red", "green"]),
        ("threshold=0&top_k=1", ["red"]),
        ("threshold=0.95", []),
        ("threshold=0&classes=green", ["green"]),
        ("threshold=0&classes=20", ["green"]),
        ("threshold=0&classes=green&classes=10", ["red", "green"]),
        ("classes=blue", []),
    ],
)
async def test_the_query_filters(
    client: httpx.AsyncClient, png_bytes: bytes, query: str, labels: list[str]
) -> None:
    response = await client.post(f"/detect?{query}", content=png_bytes)

    detections = response.json()["results"][0]["detections"]
    assert [found["category_name"] for found in detections] == labels


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/jpeg;q=0.5, image/png", "image/png"),
        ("application/json, image/png", "application/json"),
        ("image/png;q=oops, */*", "application/json"),
        ("text/html", "application/json"),
        ("", "application/json"),
    ],
)
async def test_accept_chooses_between_json_and_a_drawing(
    client: httpx.AsyncClient, png_bytes: bytes, accept: str, expected: str
) -> None:
    response = await client.post("/detect", content=png_bytes, headers={"Accept": accept})

    assert response.status_code == 200
    assert response.headers["Content-Type"] == expected


async def test_boxes_are_in_pixels_of_the_image_as_displayed(
    client: httpx.AsyncClient, encode: Callable[..., bytes], scene: npt.NDArray[np.uint8]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees

    response = await client.post("/detect", content=encode(scene, "JPEG", exif=exif))

    (result,) = response.json()["results"]
    assert (result["width"], result["height"]) == (96, 128)
    assert result["detections"][0]["bbox"] == [24, 32, 48, 64]


async def test_every_stage_is_timed(client: httpx.AsyncClient, png_bytes: bytes) -> None:
    response = await client.post("/detect", content=png_bytes)

    stages = re.findall(r"(\w+);dur=[0-9.]+", response.headers["Server-Timing"])
    assert stages == ["read", "decode", "queue", "infer", "post", "encode", "total"]
    exposition = (await client.get("/metrics")).text
    for stage in stages[:-1]:
        assert f'detr_stage_seconds_count{{stage="{stage}"}} 1.0' in exposition


async def test_images_of_one_request_share_a_batch(
    client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes
) -> None:
    engine.batch_shapes.clear()

    await client.post("/detect", files=[("images", ("a.png", png_bytes))] * 3)

    assert [shape[0] for shape in engine.batch_shapes] == [3]


@pytest.mark.parametrize(("batches", "sizes"), [("any", [2]), ("equal_shapes", [1, 1])])
async def test_only_a_bundle_whose_answers_padding_does_not_change_pads_images_together(
    settings: Settings, tmp_path: Path, encode: Callable[..., bytes], batches: str, sizes: list[int]
) -> None:
    bundle = shutil.copytree(settings.bundle, tmp_path / "bundle")
    Manifest.load(bundle).model_copy(update={"batches": batches}).save(bundle)
    engine = FakeEngine(max_batch_size=4)
    images = [encode(np.zeros((96, width, 3), np.uint8), "PNG") for width in (128, 131)]
    files = [("images", ("a.png", data)) for data in images]

    async with running(
        create_app(settings.model_copy(update={"bundle": bundle}), engine)
    ) as client:
        engine.batch_shapes.clear()
        await client.post("/detect", files=files)
        model = (await client.get("/model")).json()

    assert [shape[0] for shape in engine.batch_shapes] == sizes
    assert model["batches"] == batches


# --- the other routes


async def test_the_model_is_described(client: httpx.AsyncClient) -> None:
    model = (await client.get("/model")).json()

    assert [info["name"] for info in model["classes"]] == ["red", "green", "blue"]
    assert model["samples"] == ["samples/1.png"]
    assert model["max_batch_size"] == 4
    assert model["engine"] == {
        "runtime": "fake",
        "precision": "fp32",
        "graph": "standard",
        "threads": 2,
        "streams": 1,
    }


async def test_the_engine_that_runs_is_named(client: httpx.AsyncClient) -> None:
    exposition = (await client.get("/metrics")).text

    labels = 'graph="standard",precision="fp32",runtime="fake",streams="1",threads="2"'
    assert f"detr_engine_info{{{labels}}} 1.0" in exposition


async def test_samples_are_served_and_nothing_else_of_the_bundle(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.get("/samples/1.png")).headers["Content-Type"] == "image/png"
    for path in ("/samples/2.png", "/samples/../manifest.json", "/samples/%2e%2e/manifest.json"):
        assert code_of(await client.get(path)) == "not_found"


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_load_nothing_from_elsewhere(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "://" not in response.text
    for asset in re.findall(r'(?:src|href)="(page/[^"]+)"', response.text):
        assert (await client.get(f"/{asset}")).status_code == 200


async def test_a_request_id_is_taken_or_made(client: httpx.AsyncClient) -> None:
    taken = await client.get("/healthz", headers={"X-Request-Id": "abc-1"})
    made = await client.get("/healthz", headers={"X-Request-Id": "no spaces\tor such"})

    assert taken.headers["X-Request-Id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{32}", made.headers["X-Request-Id"])


async def test_each_request_is_one_line_of_log(
    client: httpx.AsyncClient, png_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.access")

    await client.post("/detect", content=png_bytes, headers={"X-Request-Id": "abc-1"})
    await client.post("/detect?top_k=0", content=png_bytes)

    first, second = caplog.messages
    assert re.search("path=/detect status=200 duration_ms=.* request_id=abc-1 .*images=1", first)
    assert re.search("status=422 .*code=invalid_request", second)


async def test_a_client_cannot_forge_a_line_of_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.access")

    await client.get("/%0Aerror%1B[2J status=200")

    (line,) = caplog.messages
    assert line.isprintable()
    assert r'path="/\nerror\u001b[2J status=200" status=404' in line


async def test_the_api_is_the_one_on_record(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()

    recorded = json.loads(OPENAPI.read_text())
    assert described == recorded, "after a meant change, run python -m tests.data.openapi"


# --- every error


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("threshold=1.5", "threshold: .*less than or equal to 1, got '1.5'"),
        ("threshold=-0.1", "threshold"),
        ("threshold=nan", "threshold"),
        ("threshold=half", "threshold"),
        ("top_k=0", "top_k"),
        ("format=xml", "format: .*'detections' or 'coco'"),
        ("treshold=0.5", "'treshold': did you mean 'threshold'. known are threshold, top_k, "),
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
    assert "detr_engine_failures_total 1.0" in (await client.get("/metrics")).text


async def test_a_full_queue_is_overloaded(
    client: httpx.AsyncClient, engine: FakeEngine, app: FastAPI, png_bytes: bytes
) -> None:
    held = await begin_and_hold(client, engine, png_bytes)

    with app.state.detector.admit(4):
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

    with app.state.detector.admit(4):
        response = await client.post("/detect", content=body())

    assert (response.status_code, code_of(response)) == (503, "overloaded")
    assert num_read == 0


async def test_a_passed_deadline_is_a_gateway_timeout(
    settings: Settings, engine: FakeEngine, png_bytes: bytes
) -> None:
    app = create_app(settings.model_copy(update={"deadline_s": 0.5}), engine)
    async with running(app) as client:
        held = await begin_and_hold(client, engine, png_bytes)

        response = await client.post("/detect", content=png_bytes)

        assert (response.status_code, code_of(response)) == (504, "deadline_exceeded")
        engine.gate.open()
        assert (await held).status_code == 200


async def test_an_unforeseen_error_is_an_internal_one_without_its_trace(
    settings: Settings, png_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings, FakeEngine())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret")

    async with running(app) as client:
        response = await client.get("/broken")

    assert (response.status_code, code_of(response)) == (500, "internal_error")
    assert "secret" not in response.text
    assert "a secret" in caplog.text


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    missing = await client.get("/missing")
    wrong = await client.get("/detect")

    assert (missing.status_code, code_of(missing)) == (404, "not_found")
    assert (wrong.status_code, code_of(wrong)) == (405, "method_not_allowed")
    assert wrong.headers["Allow"] == "POST"


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
    assert app.state.detector._batcher.depth == 0
    assert 'detr_rejects_total{code="client_gone"} 1.0' in (await client.get("/metrics")).text


def test_each_service_error_is_reached_by_a_test_beside_this() -> None:
    def leaves(kind: type[errors.ServiceError]) -> set[str]:
        return {kind.code}.union(*(leaves(child) for child in kind.__subclasses__()))

    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))

    assert {code for code in leaves(errors.ServiceError) if f'"{code}"' not in tests} == set()


# --- life and death


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
    async with running(app) as client:
        held = await begin_and_hold(client, engine, png_bytes)
        asyncio.get_running_loop().call_later(0.05, engine.gate.open)

    assert held.done()
    assert (await held).status_code == 200


class FailingEngine(FakeEngine):
    def run(self, images: np.ndarray, padding_mask: np.ndarray) -> RawOutput:
        raise EngineFailure("no memory")


async def test_an_engine_that_cannot_run_ends_the_process(settings: Settings) -> None:
    engine = FailingEngine()
    is_stopped = asyncio.Event()
    app = create_app(settings, engine, on_failure=is_stopped.set)

    async with running(app) as client:
        ready = await client.get("/readyz")

    assert is_stopped.is_set()
    assert app.state.failure == "image 1 (64x85) of the known answers: no memory"
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
