"""Large images that are looked at in tiles, over HTTP and on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.detect import main
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import code_of, message_of, running


@pytest.mark.anyio
async def test_tiles_are_items_of_their_request(
    client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes
) -> None:
    before = engine.num_images

    response = await client.post("/detect?tile=100&threshold=0", content=png_bytes)

    assert response.status_code == 200
    assert engine.num_images == before + 3  # 96 x 128 pixels: the whole, and two tiles of 96 x 100
    (result,) = response.json()["results"]
    assert (result["height"], result["width"]) == (96, 128)


@pytest.mark.anyio
async def test_an_image_that_fits_in_a_tile_is_not_cut(
    client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes
) -> None:
    before = engine.num_images

    whole = await client.post("/detect?threshold=0", content=png_bytes)
    tiled = await client.post("/detect?threshold=0&tile=128", content=png_bytes)

    assert tiled.json() == whole.json()
    assert engine.num_images == before + 2


@pytest.mark.anyio
async def test_tiles_count_as_images(
    client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes
) -> None:
    files, before = [("images", png_bytes), ("images", png_bytes)], engine.num_images

    response = await client.post("/detect?tile=64", files=files)

    assert response.status_code == 413
    assert code_of(response) == "too_many_images"
    assert "expected at most 3, got 14, of which 12 are tiles" in message_of(response)
    assert engine.num_images == before


@pytest.mark.anyio
@pytest.mark.parametrize("tile", ["63", "0", "-1", "large"])
async def test_tiles_that_are_too_small_are_refused(
    client: httpx.AsyncClient, png_bytes: bytes, tile: str
) -> None:
    response = await client.post(f"/detect?tile={tile}", content=png_bytes)

    assert code_of(response) == "invalid_request"
    assert "tile" in message_of(response)


@pytest.mark.anyio
async def test_an_image_that_cannot_be_read_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post("/detect?tile=64", files={"images": ("a.png", b"no image")})

    assert code_of(response) == "unsupported_media_type"
    assert "a.png" in message_of(response)


@pytest.mark.anyio
@pytest.mark.parametrize(("query", "num_found"), [("", 14), ("&num_detections=5", 5)])
async def test_there_may_be_more_detections_than_the_model_has_in_one_part(
    fake_bundle: Path, encode: Callable[..., bytes], query: str, num_found: int
) -> None:
    panorama = encode(np.zeros((100, 1000, 3), np.uint8), "PNG")
    settings = Settings(bundle=fake_bundle)

    async with running(create_app(settings, lambda *_: FakeEngine())) as client:
        response = await client.post(f"/detect?tile=100&threshold=0.5{query}", content=panorama)

    # One in the middle of each of 13 tiles, and of the whole.
    assert len(response.json()["results"][0]["detections"]) == num_found


def test_the_command_line_cuts_as_the_service_does(
    address: str,
    toy_bundle: Path,
    tmp_path: Path,
    png_bytes: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "scene.png").write_bytes(png_bytes)
    answer = httpx.post(f"{address}/detect?tile=100&threshold=0", content=png_bytes).json()

    main([str(tmp_path / "scene.png"), "--bundle", str(toy_bundle),
          "--threshold", "0", "--tile", "100"])  # fmt: skip

    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert found["detections"] == answer["results"][0]["detections"]
    assert found["detections"]
