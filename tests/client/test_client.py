"""detr_client, asking a served bundle."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from detr_client import (
    AsyncDetrClient,
    Batching,
    DetrClient,
    DetrError,
    ImageResult,
    Options,
    coco_results,
)
from service.schemas import DetectQuery
from tests.server_process import Process

ROOT = Path(__file__).parents[2]


def names(result: ImageResult) -> list[str]:
    return [found.category_name for found in result.detections]


@pytest.fixture
def photo(tmp_path: Path, png_bytes: bytes) -> Path:
    path = tmp_path / "a photo.png"
    path.write_bytes(png_bytes)
    return path


@pytest.mark.parametrize(
    "image_of",
    [
        lambda path: path,
        str,
        Path.read_bytes,
        Image.open,
        lambda path: np.asarray(Image.open(path)),
        lambda path: Image.open(path).convert("RGBA"),
    ],
    ids=["path", "text", "bytes", "Pillow", "array", "RGBA"],
)
def test_every_kind_of_image_has_the_same_detections(
    address: str, photo: Path, image_of: Callable[[Path], Any]
) -> None:
    with DetrClient(address) as client:
        expected = client.detect(photo.read_bytes())

        result = client.detect(image_of(photo), threshold=0.3)

    assert result.detections == expected.detections
    assert names(result) == ["red", "green"]
    assert (result.width, result.height) == (128, 96)


def test_many_images_share_requests_and_keep_their_order(
    address: str, scene: npt.NDArray[np.uint8]
) -> None:
    images = [scene, np.zeros_like(scene)] * 10

    with DetrClient(address, batching=Batching(most_images=3)) as client:
        results = client.detect_many(images, threshold=0.5, image_ids=range(100, 120))

    assert [result.image_id for result in results] == list(range(100, 120))
    assert [names(result) for result in results] == [["red", "green"], []] * 10


def test_parameters_reach_the_service(address: str, photo: Path) -> None:
    with DetrClient(address) as client:
        result = client.detect(photo, threshold=0, num_detections=1, classes=["green", "30"])

    assert names(result) == ["green"]


def test_the_options_are_the_parameters_of_the_service() -> None:
    others = {"model", "format", "top_k"}  # of the client; always JSON; an older name

    assert Options.__annotations__.keys() == DetectQuery.model_fields.keys() - others


def test_large_images_are_sent_one_by_one_as_their_tiles_count_as_images(
    address: str, photo: Path
) -> None:
    with DetrClient(address) as client:
        results = client.detect_many([photo] * 8, threshold=0.5, tile=64)

    assert len(results) == 8
    assert {"red", "green"} <= set(names(results[-1]))


def test_results_become_those_of_coco(address: str, photo: Path) -> None:
    with DetrClient(address) as client:
        results = client.detect_many([photo] * 2, image_ids=[7, 8], num_detections=1)

    entry, other = coco_results(results)
    assert other == {**entry, "image_id": 8}
    assert entry == {
        "image_id": 7,
        "category_id": 10,
        "bbox": list(results[0].detections[0].bbox),
        "score": results[0].detections[0].score,
    }


def test_an_error_carries_what_the_service_said(address: str) -> None:
    with DetrClient(address) as client, pytest.raises(DetrError, match="JPEG") as caught:
        client.detect(b"text")

    assert (caught.value.status, caught.value.code) == (415, "unsupported_media_type")
    assert caught.value.request_id


def test_the_model_is_reported(address: str) -> None:
    with DetrClient(address) as client:
        assert client.model()["name"] == "toy"


@pytest.mark.anyio
async def test_the_async_client_answers_the_same(address: str, photo: Path) -> None:
    with DetrClient(address) as plain:
        expected = plain.detect(photo)

    async with AsyncDetrClient(address) as client:
        result = await client.detect(photo)
        model = await client.model()

    assert result == expected
    assert model["name"] == "toy"


def test_a_service_that_is_still_loading_is_waited_for(
    start: Callable[..., Process], photo: Path
) -> None:
    address = start().read_address()

    with DetrClient(address) as client:
        result = client.detect(photo)

    assert names(result) == ["red", "green"]


@pytest.mark.anyio
async def test_a_key_is_sent_where_the_service_asks_for_one(
    start: Callable[..., Process], tmp_path: Path, photo: Path
) -> None:
    key = "ein Schlüssel aus einer Datei\n"
    (tmp_path / "keys").write_text(key)
    address = start(api_keys_file=tmp_path / "keys").read_address()

    with DetrClient(address, api_key=key) as client:
        result = client.detect(photo)
    async with AsyncDetrClient(address, api_key=key) as async_client:
        same = await async_client.detect(photo)
    with DetrClient(address) as stranger, pytest.raises(DetrError) as caught:
        stranger.detect(photo)

    assert same == result
    assert caught.value.status == 401


@pytest.mark.parametrize("page", ["README.md", "client/README.md"])
def test_the_example_of_a_page_runs(address: str, page: str) -> None:
    text = (ROOT / page).read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)

    result = subprocess.run(
        [sys.executable, "-c", program.replace("http://localhost:8000", address)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stderr


def test_it_installs_by_itself_and_brings_its_types(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "client", tmp_path / "client")  # a build leaves files beside its sources
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
        "--target",
        str(tmp_path),
    ]

    result = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, tmp_path / "client"],
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stderr
    assert (tmp_path / "detr_client/py.typed").exists()
    assert (tmp_path / "detr_client/client.py").exists()
