"""Over HTTP, the detections in an image do not depend on what other clients send."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.server_process import Process

DEMO = Path(__file__).parents[2] / "bundles" / "demo"
# Of one bucket and of several, tall and wide; none is a multiple of a level's cells.
SIZES = [(171, 129), (138, 130), (165, 128), (129, 171), (131, 141), (150, 128), (201, 133)]
NUM_CLIENTS, NUM_ROUNDS = 6, 4


def photographs() -> list[bytes]:
    """The demo's samples in sizes of all kinds, as PNG."""
    files = []
    for number, size in enumerate(SIZES):
        sample = Image.open(DEMO / "samples" / f"{number % 4 + 1}.png").convert("RGB")
        buffer = io.BytesIO()
        sample.resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def ask(address: str, files: list[bytes]) -> list[list[dict[str, Any]]]:
    answer = httpx.post(
        f"{address}/detect",
        params={"threshold": 0.0, "top_k": 20},
        files=[("images", (f"{number}.png", file)) for number, file in enumerate(files)],
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return [result["detections"] for result in answer.json()["results"]]


def padding_so_far(address: str) -> float:
    """The parts of batches that were padding, summed."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(
        float(line.split()[1]) for line in lines if line.startswith("detr_padding_ratio_sum")
    )


def assert_same(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """Every detection of a score above 0.05 is among those found, and none is new."""
    for wanted, given in ((expected, found), (found, expected)):
        for detection in wanted:
            near = [
                other
                for other in given
                if other["category_id"] == detection["category_id"]
                and abs(other["score"] - detection["score"]) <= 0.01
                and np.abs(np.subtract(other["bbox"], detection["bbox"])).max() <= 0.5
            ]
            assert near or detection["score"] < 0.05, (detection, given)


@pytest.mark.slow
def test_images_of_all_sizes_and_clients_are_answered_as_if_alone(
    start: Callable[..., Process],
) -> None:
    address = start(bundle=DEMO).start()
    files = photographs()
    alone = [ask(address, [file])[0] for file in files]
    before = padding_so_far(address)

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        asked = [clients.submit(ask, address, files) for _ in range(NUM_CLIENTS * NUM_ROUNDS)]
        singles = [clients.submit(ask, address, [file]) for file in files * NUM_ROUNDS]

    for request in asked:
        for expected, found in zip(alone, request.result(), strict=True):
            assert_same(expected, found)
    for expected, request in zip(alone * NUM_ROUNDS, singles, strict=True):
        assert_same(expected, request.result()[0])
    assert padding_so_far(address) > before, "no batch had padding, so nothing was tried"
