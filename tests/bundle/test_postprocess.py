from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.postprocess import ImageOutput, RawOutput, to_detections
from bundle.preprocess import Geometry

GEOMETRY = Geometry(original=(100, 200), resized=(50, 100))
SCORES = np.array([0.9, 0.6, 0.3, 0.1], np.float32)
LABELS = np.array([2, 0, 2, 1], np.int64)
BOXES = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.4, 0.8], [0.5, 0.5, 0.5, 0.5], [0, 0, 0.5, 1]], "f4")
OUTPUT = ImageOutput(SCORES, LABELS, BOXES)
UNIT = st.floats(0, 1, width=32)


def test_boxes_become_pixels_of_the_original_image() -> None:
    found = to_detections(OUTPUT, GEOMETRY)

    expected = [[0, 0, 200, 100], [20, 20, 60, 60], [100, 50, 0, 0], [0, 0, 100, 100]]
    assert len(found) == 4
    assert found.boxes_xywh_px.dtype == np.float32
    np.testing.assert_allclose(found.boxes_xywh_px, expected, atol=1e-4)
    np.testing.assert_array_equal(found.scores, SCORES)
    np.testing.assert_array_equal(found.labels, LABELS)


def test_the_threshold_is_inclusive() -> None:
    found = to_detections(OUTPUT, GEOMETRY, threshold=0.3)

    np.testing.assert_array_equal(found.scores, SCORES[:3])


def test_every_label_may_have_its_own_threshold() -> None:
    found = to_detections(OUTPUT, GEOMETRY, threshold=np.array([0, 1, 0.5], np.float32))

    np.testing.assert_array_equal(found.scores, SCORES[(LABELS == 0) | (SCORES >= 0.5)])


def test_top_k_counts_only_the_labels_kept() -> None:
    found = to_detections(OUTPUT, GEOMETRY, top_k=2, labels_kept={2, 1})

    np.testing.assert_array_equal(found.labels, [2, 2])


@pytest.mark.parametrize("limit", [{"labels_kept": []}, {"top_k": 0}, {"threshold": 0.95}])
@pytest.mark.parametrize("nms_iou", [None, 0.5])
def test_nothing_kept_is_no_detection(limit: dict[str, Any], nms_iou: float | None) -> None:
    found = to_detections(OUTPUT, GEOMETRY, nms_iou=nms_iou, **limit)

    assert len(found) == 0
    assert found.boxes_xywh_px.shape == (0, 4)


def test_no_output_is_no_detection() -> None:
    found = to_detections(ImageOutput(SCORES[:0], LABELS[:0], BOXES[:0]), GEOMETRY)

    assert found.boxes_xywh_px.shape == (0, 4)


@given(
    st.lists(st.tuples(UNIT, UNIT, UNIT, UNIT), min_size=1, max_size=5),
    st.integers(1, 20_000),
    st.integers(1, 20_000),
)
def test_boxes_stay_inside_the_image(
    corners: list[tuple[float, float, float, float]], height: int, width: int
) -> None:
    boxes = np.array(corners, np.float32)
    scores, labels = np.ones(len(boxes), np.float32), np.zeros(len(boxes), np.int64)

    found = to_detections(ImageOutput(scores, labels, boxes), Geometry((height, width), (1, 1)))

    x, y, w, h = found.boxes_xywh_px.astype(np.float64).T
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    assert found.boxes_xywh_px.min() >= 0
    assert (x[ordered] + w[ordered]).max(initial=0) <= width * (1 + 1e-6)
    assert (y[ordered] + h[ordered]).max(initial=0) <= height * (1 + 1e-6)


def test_an_output_for_a_batch_is_taken_apart_by_image() -> None:
    batch = RawOutput(SCORES.reshape(2, 2), LABELS.reshape(2, 2), BOXES.reshape(2, 2, 4))

    first, second = batch.rows()

    np.testing.assert_array_equal(first.scores, SCORES[:2])
    np.testing.assert_array_equal(second.labels, LABELS[2:])
    np.testing.assert_array_equal(second.boxes, BOXES[2:])
