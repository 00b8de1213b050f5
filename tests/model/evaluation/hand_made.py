"""Boxes and detections made by hand, for tests of errors, calibration and the page of results."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bundle.manifest import ClassInfo


def truth_of(
    *boxes: tuple[int, int, Sequence[float]],
    names: Sequence[str] = ("cat", "dog"),
    num_images: int = 2,
    crowds: Sequence[int] = (),
) -> dict[str, Any]:
    """Images 1, 2, ... of 400 x 400 pixels with boxes (image, category, xywh); categories from 7.

    crowds: positions of the boxes that are crowds.
    """
    return {
        "images": [{"id": number + 1, "file_name": f"{number + 1}.png", "height": 400, "width": 400}
                   for number in range(num_images)],
        "annotations": [
            {"id": at, "image_id": image_id, "category_id": category_id, "bbox": list(box),
             "iscrowd": int(at in crowds)}
            for at, (image_id, category_id, box) in enumerate(boxes)
        ],
        "categories": [{"id": 7 + number, "name": name} for number, name in enumerate(names)],
    }  # fmt: skip


def found(
    image_id: int, category_id: int, box: Sequence[float], *, at: float = 0.9
) -> dict[str, Any]:
    """A detection with that score."""
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": at}


def column(number: int) -> list[int]:
    """One of twenty boxes that do not touch."""
    return [20 * number, 0, 15, 15]


class GreyImages:
    """The images of such a truth, all grey."""

    def __init__(self, truth: dict[str, Any]) -> None:
        self._truth = truth

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return tuple(ClassInfo(**category) for category in self._truth["categories"])

    def __len__(self) -> int:
        return len(self._truth["images"])

    def image_id(self, index: int) -> int:
        return int(self._truth["images"][index]["id"])

    def read_image(self, index: int) -> np.ndarray:
        return np.full((400, 400, 3), 110, np.uint8)

    def ground_truth(self) -> dict[str, Any]:
        return self._truth
