"""Boxes are taken from segmentations where an annotation has nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.data.segmentation import box_of
from tests.model.data.reading import read_annotations


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[4, 6, 24, 6, 14, 16]], (4, 6, 20, 10)),
        ([[4, 6, 9, 6, 9, 9], [20, 10, 24, 16, 20, 12]], (4, 6, 20, 10)),
        ([4, 6, 24, 6, 14, 16], (4, 6, 20, 10)),
        ({"size": [4, 3], "counts": [5, 2, 5]}, (1, 1, 1, 2)),
        ({"size": [4, 3], "counts": [0, 12]}, (0, 0, 3, 4)),
        ({"size": [4, 3], "counts": [3, 2, 7]}, (0, 0, 2, 4)),
    ],
)
def test_the_box_around_polygons_or_runs_is_taken(
    segmentation: Any, box: tuple[float, ...]
) -> None:
    assert box_of(segmentation) == box


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))
)
def test_a_mask_in_cocos_text_has_the_box_of_its_pixels(pixels: np.ndarray) -> None:
    encoded = coco_mask.encode(np.asfortranarray(pixels))
    text = {"size": list(pixels.shape), "counts": encoded["counts"].decode()}
    rows, columns = np.nonzero(pixels)

    expected = None
    if rows.size:
        x, y = columns.min(), rows.min()
        expected = (x, y, columns.max() + 1 - x, rows.max() + 1 - y)
    assert box_of(text) == expected


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        "x",
        7,
        [[]],
        [[1, 2, 3]],
        [["a", 2, 3, 4]],
        [[float("nan"), 2, 3, 4]],
        [1, [2, 3]],
        {},
        {"size": [4, 3]},
        {"size": [4, 3], "counts": [-1, 5]},
        {"size": [4, 3], "counts": [1, 99]},
        {"size": [4, 3], "counts": [1, True]},
        {"size": [4, 3], "counts": [12]},
        {"size": [0, 3], "counts": [0, 1]},
        {"size": [4, 3], "counts": "\x00"},
        {"size": [4, 3], "counts": "o" * 1000},
        {"size": [10**9, 10**9], "counts": [0, 10**18]},
    ],
)
def test_what_is_not_a_segmentation_has_no_box(segmentation: Any) -> None:
    assert box_of(segmentation) is None


def test_missing_boxes_are_taken_from_segmentations_and_noted(tmp_path: Path) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[4, 6, 24, 6, 9, 16]]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
        "annotations": [annotation, annotation | {"id": 2, "bbox": []}],
        "categories": [{"id": 1, "name": "bolt"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))

    annotations = read_annotations(tmp_path / "train.json")

    assert [box.bbox for box in annotations.boxes] == [(4, 6, 20, 10)] * 2
    assert [fault.message for fault in annotations.faults] == [
        "boxes are missing: taken from segmentation (entries: 2, the first: id 1 of annotations[0])"
    ]


def test_a_stated_box_comes_before_the_segmentation(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4],
                         "segmentation": [[4, 6, 24, 6, 9, 16]]}],
        "categories": [{"id": 1, "name": "bolt"}],
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(content))

    assert read_annotations(tmp_path / "train.json").boxes[0].bbox == (1, 2, 3, 4)
