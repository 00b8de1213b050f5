"""Several bundles in one process, each under its own name."""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from bundle.manifest import Bundle
from detr_client import DetrClient
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.server_process import Process
from tests.service.asking import code_of, message_of, running

KEY = "a key of tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def places(fake_bundle: Path, tmp_path: Path) -> dict[str, Path]:
    return {
        name: shutil.copytree(fake_bundle, tmp_path / f"bundle-{name}")
        for name in ("small", "large")
    }


@pytest.fixture
def engines() -> dict[str, FakeEngine]:
    """The engine that was opened last for each name."""
    return {}


@pytest.fixture
async def app(
    settings: Settings, places: dict[str, Path], engines: dict[str, FakeEngine]
) -> AsyncIterator[FastAPI]:
    def open_engine(bundle: Bundle, _: Settings) -> FakeEngine:
        engine = FakeEngine(max_batch_size=4)
        engines[bundle.directory.name.removeprefix("bundle-")] = engine
        return engine

    changes = {"bundles": as_setting(places), "admin_key": KEY}
    yield create_app(Settings(**settings.model_dump() | changes), open_engine)
    for engine in engines.values():
        engine.gate.open()


def as_setting(places: dict[str, Path]) -> str:
    return ",".join(f"{name}={directory}" for name, directory in places.items())


def test_a_real_service_answers_by_every_protocol_with_the_model_that_is_asked_for(
    start: Callable[..., Process], toy_bundle: Path, tmp_path: Path, jpeg_bytes: bytes
) -> None:
    other = shutil.copytree(toy_bundle, tmp_path / "other")
    Bundle.load(other).with_manifest(metrics={"AP": 0.5}).save()
    process = start(bundles=f"small={toy_bundle},large={other}")

    address = process.start()

    with httpx.Client(base_url=address, timeout=30) as client:
        models = [
            client.get("/model").json(),
            client.get("/model", params={"model": "large"}).json(),
        ]
        found = [
            client.post("/detect", params=params, content=jpeg_bytes).json()["model"]
            for params in ({}, {"model": "small"}, {"model": "large"})
        ]
        v2 = client.get("/v2/models/large").json()
        deepstack = client.post("/v1/vision/custom/large", files={"image": jpeg_bytes})
        sample = client.get("/samples/1.png", params={"model": "large"})
        metrics = client.get("/metrics").text

    with DetrClient(address, model="large") as large:
        large.detect(jpeg_bytes)
        told = large.model()

    assert told == models[1]
    assert [(model["name"], model["metrics"]["AP"]) for model in models] == [
        ("small", 1.0),
        ("large", 0.5),
    ]
    assert models[0]["models"] == models[1]["models"] == ["small", "large"]
    assert [ref["version"] for ref in found] == [
        models[0]["version"],
        models[0]["version"],
        models[1]["version"],
    ]
    assert (v2["name"], v2["versions"]) == ("large", [models[1]["version"]])
    assert (deepstack.json()["success"], sample.status_code) == (True, 200)
    assert 'detr_images_total{model="small"} 2.0' in metrics
    assert 'detr_images_total{model="large"} 2.0' in metrics


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("POST", "/detect?model=lage"),
        ("GET", "/model?model=lage"),
        ("GET", "/samples/1.png?model=lage"),
        ("POST", "/admin/reload?model=lage"),
    ],
)
async def test_an_unknown_model_is_told_what_there_is(
    client: httpx.AsyncClient, method: str, url: str
) -> None:
    answer = await client.request(method, url, headers=HEADERS)

    assert (answer.status_code, code_of(answer)) == (404, "unknown_model")
    assert "did you mean 'large'? served here: 'small', 'large'" in message_of(answer)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "url"), [("GET", "/model?modle=large"), ("POST", "/admin/reload?name=large")]
)
async def test_a_mistyped_parameter_does_not_stand_for_the_first_model(
    client: httpx.AsyncClient, method: str, url: str
) -> None:
    answer = await client.request(method, url, headers=HEADERS)

    assert (answer.status_code, code_of(answer)) == (422, "invalid_request")
    assert "known are model" in message_of(answer)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "instead"),
    [
        ("/v2/models/small/infer?model=large", "the path names the model"),
        ("/v2/models/small/infer?threshold=0.9", "no threshold is applied"),
        ("/v1/vision/detection?model=large", "/v1/vision/custom/NAME another model"),
        ("/v1/vision/detection?min_confidence=0.9", "the form has 'min_confidence'"),
    ],
)
async def test_a_parameter_of_another_path_is_not_passed_over(
    client: httpx.AsyncClient, url: str, instead: str
) -> None:
    answer = await client.post(url)

    assert answer.status_code == 422
    assert instead in answer.json()["error"]


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["/v2/models/lage/infer", "/v1/vision/custom/lage"])
async def test_an_unknown_model_is_told_so_in_the_words_of_the_protocol(
    client: httpx.AsyncClient, url: str
) -> None:
    answer = await client.post(url)

    assert answer.status_code == 404
    assert "served here: 'small', 'large'" in answer.json()["error"]


@pytest.mark.anyio
async def test_each_model_has_an_engine_of_its_own(
    client: httpx.AsyncClient, engines: dict[str, FakeEngine], png_bytes: bytes
) -> None:
    for engine in engines.values():
        engine.batch_shapes.clear()

    await client.post("/detect?model=large", content=png_bytes)

    assert (engines["small"].num_images, engines["large"].num_images) == (0, 1)


@pytest.mark.anyio
async def test_models_share_the_places_of_the_queue(
    client: httpx.AsyncClient, app: FastAPI, png_bytes: bytes
) -> None:
    with app.state.serving.model("small").detector.admit(4, client="127.0.0.1"):
        answer = await client.post("/detect?model=large", content=png_bytes)

    assert (answer.status_code, code_of(answer)) == (503, "overloaded")
    assert "places taken: 4 of 4" in message_of(answer)


@pytest.mark.anyio
async def test_a_reload_by_name_leaves_the_other_models_alone(
    client: httpx.AsyncClient, places: dict[str, Path], engines: dict[str, FakeEngine]
) -> None:
    before = dict(engines)
    Bundle.load(places["large"]).with_manifest(metrics={"AP": 0.5}).save()

    answer = await client.post("/admin/reload?model=large", headers=HEADERS)

    metrics = (await client.get("/metrics")).text
    assert answer.json()["name"] == "large"
    assert (await client.get("/model?model=large")).json()["metrics"] == {"AP": 0.5}
    assert (before["small"].is_closed, before["large"].is_closed) == (False, True)
    assert 'detr_selftest_passed{model="small"} 1.0' in metrics
    assert 'detr_selftest_passed{model="large"} 1.0' in metrics
    assert 'detr_reloads_total{model="large",result="swapped"} 1.0' in metrics


@pytest.mark.anyio
async def test_all_models_are_reloaded_at_once(
    client: httpx.AsyncClient, app: FastAPI, engines: dict[str, FakeEngine]
) -> None:
    before = dict(engines)

    app.state.serving.reload_all()
    await client.post("/admin/reload?model=large", headers=HEADERS)  # the second of those

    assert (before["small"].is_closed, before["large"].is_closed) == (True, True)


@pytest.mark.anyio
async def test_a_model_that_cannot_start_ends_the_service_and_is_named(
    settings: Settings, places: dict[str, Path], toy_bundle: Path
) -> None:
    bundles = as_setting(places | {"wrong": toy_bundle})  # whose known answers are not FakeEngine's
    app = create_app(settings.model_copy(update={"bundles": bundles}), lambda *_: FakeEngine())

    async with running(app) as client:
        ready = await client.get("/readyz")

    assert ready.json() == {"status": "failed"}
    assert app.state.serving.failure.startswith("model 'wrong': ")


def test_a_missing_bundle_is_named_before_anything_starts(
    settings: Settings, places: dict[str, Path], tmp_path: Path
) -> None:
    bundles = as_setting(places | {"lost": tmp_path / "nowhere"})

    with pytest.raises(ValueError, match=r"model 'lost': .*no bundle there"):
        create_app(settings.model_copy(update={"bundles": bundles}), lambda *_: FakeEngine())


@pytest.mark.parametrize("bundles", ["a", "a=", "=b", "a b=c", "a=b,a=c", "a=b,c", ".=a", "..=a"])
def test_a_setting_that_names_no_bundles_is_refused(bundles: Any) -> None:
    with pytest.raises(ValidationError, match="expected"):
        Settings(bundles=bundles)


def test_blanks_around_names_and_directories_are_no_part_of_them() -> None:
    settings = Settings(bundles=" small = my bundles/a ,, large= b")

    assert settings.bundle_places == [("small", Path("my bundles/a")), ("large", Path("b"))]
