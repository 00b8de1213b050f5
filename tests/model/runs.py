"""What tests of training share: a small data set, a short run, and what goes wrong in it."""

import csv
import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.config import TrainConfig
from model.configs import tiny
from model.data.loading import RunData

ROOT = Path(__file__).parents[2]
COLOURS = {1: (220, 40, 40), 5: (40, 220, 40), 9: (60, 60, 240)}  # by category id


def write_images(
    directory: Path,
    *,
    num_train: int = 6,
    num_val: int = 2,
    boxes_per_image: int = 2,
    categories: dict[int, tuple[int, int, int]] = COLOURS,
) -> Path:
    """A data set in COCO's format: rectangles, each class in its colour, on grey."""
    rng = np.random.default_rng(0)
    for split, num_images in (("train", num_train), ("val", num_val)):
        images: list[dict] = []
        annotations: list[dict] = []
        (directory / "images" / split).mkdir(parents=True)
        for image_id in range(1, num_images + 1):
            height, width = 64 + 8 * (image_id % 3), 96
            pixels = np.full((height, width, 3), 110, np.uint8)
            for _ in range(boxes_per_image):
                category_id = int(rng.choice(list(categories)))
                w, h = (int(side) for side in rng.integers(16, 40, 2))
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                pixels[y : y + h, x : x + w] = categories[category_id]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": category_id,
                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                })  # fmt: skip
            name = f"{image_id}.png"
            Image.fromarray(pixels).save(directory / "images" / split / name)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": key, "name": f"class {key}"} for key in categories],
        }
        (directory / f"{split}.json").write_text(json.dumps(content))
    return directory


def run_config(**changes: Any) -> TrainConfig:
    """Four short epochs with all that must be restored: dropout, moving average, two parts."""
    defaults = {"epochs": 4, "batch_size": 2, "accumulation_steps": 2, "ema_decay": 0.9,
                "warmup_steps": 3, "num_threads": 1}  # fmt: skip
    return replace(tiny(), **(defaults | changes))


class Watched:
    """A data set that calls `at` before it gives out the image with that count."""

    def __init__(self, dataset: Any, count: int, at: Callable[[], None]) -> None:
        self._dataset = dataset
        self._left = count
        self._at = at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        self._count()
        return self._dataset[index]

    def read_image(self, index: int) -> Any:
        self._count()
        return self._dataset.read_image(index)

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._at()


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class PowerCut(BaseException):
    """The end of a process, which nothing in it can catch."""


def crash() -> None:
    raise PowerCut


def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash_loading() -> None:
    raise KeyError("bbox")


def run_out_of_memory() -> None:
    raise MemoryError("1 GB")


def state_of(out_dir: Path) -> dict[str, Any]:
    """All that a run would go on from, but for the time it took."""
    state = torch.load(out_dir / "last.training.pt", weights_only=True)
    for name in [name for name in state["progress"] if name.endswith("seconds")]:
        del state["progress"][name]
    return state


def epochs_of(out_dir: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, as they are written, but for the time they took."""
    with (out_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in [name for name in row if name == "seconds" or name.endswith("_s")]:
            del row[name]
    return rows


def assert_equal(found: Any, expected: Any) -> None:
    """Bit for bit, through nested dicts and lists of tensors."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for item, expected_item in zip(found, expected, strict=True):
            assert_equal(item, expected_item)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def interrupted_data(data: RunData, split: str, count: int, at: Callable[[], None]) -> RunData:
    """Data that calls `at` before training has the image with that count; it has no report."""
    watched: dict[str, Any] = {split: Watched(getattr(data, split), count, at)}
    return replace(data, report=None, **watched)
