"""What the routes answer, through an ASGI client."""

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI
from PIL import Image

from bundle.manifest import ClassInfo, Manifest
from service.app import App, create_app
from service.routes import find_labels
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import code_of, message_of, running

pytestmark = pytest.mark.anyio
OPENAPI = Path(__file__).parents[1] / "data" / "openapi.json"


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
        ("threshold=0&num_detections=1", ["red"]),
        ("threshold=0&num_detections=3", ["red", "green"]),
        ("threshold=0&top_k=1", ["red"]),
        ("threshold=0&top_k=1000", ["red", "green"]),
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


@pytest.mark.parametrize(
    "repeated", ["threshold=0.5&threshold=0.9", "model=toy&model=other", "format=coco&format=coco"]
)
async def test_a_parameter_that_is_given_twice_is_refused(
    client: httpx.AsyncClient, png_bytes: bytes, repeated: str
) -> None:
    name = repeated.partition("=")[0]

    answers = [
        await client.post(f"/detect?{repeated}", content=png_bytes),
        await client.get(f"/model?{repeated}"),
    ]

    for answer in answers:
        assert (answer.status_code, code_of(answer)) == (422, "invalid_request")
        assert message_of(answer).startswith(f"{name}: expected one value, got 2: ")


@pytest.mark.parametrize(
    "written", ["threshold=0.0_1", "num_detections=1_0", "top_k=1_0", "nms_iou=0.0_5", "tile=1_00"]
)
async def test_numbers_have_no_underscores(
    client: httpx.AsyncClient, png_bytes: bytes, written: str
) -> None:
    response = await client.post(f"/detect?{written}", content=png_bytes)

    assert (response.status_code, code_of(response)) == (422, "invalid_request")
    assert "a number without underscores" in message_of(response)


async def test_every_stage_is_timed(client: httpx.AsyncClient, png_bytes: bytes) -> None:
    response = await client.post("/detect", content=png_bytes)

    stages = re.findall(r"(\w+);dur=[0-9.]+", response.headers["Server-Timing"])
    assert stages == ["read", "decode", "queue", "infer", "post", "encode", "total"]
    await asyncio.sleep(0)  # what follows an answer: this client is on the same loop
    exposition = (await client.get("/metrics")).text
    for stage in stages[:-1]:
        assert f'detr_stage_seconds_count{{model="toy",stage="{stage}"}} 1.0' in exposition


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
        create_app(settings.model_copy(update={"bundle": bundle}), lambda *_: engine)
    ) as client:
        engine.batch_shapes.clear()
        await client.post("/detect", files=files)
        model = (await client.get("/model")).json()

    assert [shape[0] for shape in engine.batch_shapes] == sizes
    assert model["batches"] == batches


async def test_the_model_is_described(client: httpx.AsyncClient) -> None:
    model = (await client.get("/model")).json()

    assert [info["name"] for info in model["classes"]] == ["red", "green", "blue"]
    assert model["samples"] == ["samples/1.png"]
    assert model["max_batch_size"] == 4
    assert model["engine"] == {
        "runtime": "fake",
        "precision": "fp32",
        "float_type": "fp32",
        "graph": "standard",
        "threads": 2,
        "streams": 1,
    }


async def test_the_engine_that_runs_is_named(client: httpx.AsyncClient) -> None:
    exposition = (await client.get("/metrics")).text

    labels = (
        'float_type="fp32",graph="standard",model="toy",precision="fp32",runtime="fake",'
        'streams="1",threads="2"'
    )
    assert f"detr_engine_info{{{labels}}} 1.0" in exposition


async def test_samples_are_served_and_nothing_else_of_the_bundle(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.get("/samples/1.png")).headers["Content-Type"] == "image/png"
    for path in ("/samples/2.png", "/samples/../manifest.json", "/samples/%2e%2e/manifest.json"):
        assert code_of(await client.get(path)) == "not_found"


@pytest.mark.parametrize("wanted", ["bytes=0-1", "bytes=9-1", "bytes=99999999-"])
async def test_files_are_sent_whole(client: httpx.AsyncClient, wanted: str) -> None:
    response = await client.get("/samples/1.png", headers={"Range": wanted})

    assert response.status_code == 200
    assert response.headers["Accept-Ranges"] == "none"
    assert response.content == (await client.get("/samples/1.png")).content


@pytest.mark.parametrize("path", ["/", "/docs", "/page/app.js", "/samples/1.png"])
async def test_a_file_that_the_client_has_is_not_sent_again(
    client: httpx.AsyncClient, path: str
) -> None:
    whole = await client.get(path)
    given = whole.headers["ETag"]

    same = await client.get(path, headers={"If-None-Match": f'"other", W/{given}', "Range": "0-1"})
    other = await client.get(path, headers={"If-None-Match": '"other"'})

    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", given)
    assert (other.status_code, other.content) == (200, whole.content)


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_load_nothing_from_elsewhere(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "://" not in response.text
    for asset in re.findall(r'(?:src|href)="(page/[^"]+)"', response.text):
        assert (await client.get(f"/{asset}")).status_code == 200


async def test_the_api_is_the_one_on_record(fake_bundle: Path) -> None:
    described = create_app(Settings(bundle=fake_bundle)).openapi()

    recorded = json.loads(OPENAPI.read_text())
    assert described == recorded, "after a meant change, run python -m tests.data.openapi"


async def test_the_description_is_made_once_for_what_is_served(fake_bundle: Path) -> None:
    app = create_app(Settings(bundle=fake_bundle))
    assert isinstance(app, App)

    assert app.openapi() is app.openapi()
    assert app.description_json() is app.description_json()


async def test_the_description_is_served_as_json(app: FastAPI, client: httpx.AsyncClient) -> None:
    response = await client.get("/openapi.json")

    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == app.openapi()


async def test_a_sample_that_was_removed_is_not_found(
    fake_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    bundle = shutil.copytree(fake_bundle, tmp_path / "bundle")
    app = create_app(settings.model_copy(update={"bundle": bundle}), lambda *_: FakeEngine())
    async with running(app) as client:
        (bundle / "samples" / "1.png").unlink()

        response = await client.get("/samples/1.png")

    assert code_of(response) == "not_found"


def test_a_name_stands_for_all_classes_that_have_it() -> None:
    names = ("red", "green", "red")
    classes = [ClassInfo(id=10 * place, name=name) for place, name in enumerate(names)]

    assert find_labels(["red"], classes) == {0, 2}
    assert find_labels(["20", "green"], classes) == {1, 2}
