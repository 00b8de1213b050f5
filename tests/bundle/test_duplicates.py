import numpy as np
import pytest

from bundle.duplicates import without_duplicates
from bundle.postprocess import ImageOutput, to_detections
from bundle.preprocess import Geometry

# IoU of the first with the others: 0.6, 1/3, 0; of the second with the third: 0.6.
BOXES = np.array([[0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 6, 4], [8, 8, 9, 9]], np.float32)
SAME = np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("iou", "kept"),
    [(1.0, [0, 1, 2, 3]), (0.61, [0, 1, 2, 3]), (0.5, [0, 2, 3]), (0.3, [0, 3]), (0.0, [0, 3])],
)
def test_boxes_go_that_overlap_a_better_one_that_stays(iou: float, kept: list[int]) -> None:
    assert without_duplicates(BOXES, SAME, iou=iou).tolist() == kept


def test_boxes_of_other_classes_are_not_duplicates() -> None:
    labels = np.array([0, 1, 0, 1])

    assert without_duplicates(BOXES, labels, iou=0.5).tolist() == [0, 1, 2, 3]
    assert without_duplicates(BOXES, labels, iou=0.3).tolist() == [0, 1, 3]


def test_boxes_without_area_stay_and_no_boxes_are_none() -> None:
    points = np.zeros((3, 4), np.float32)

    assert without_duplicates(points, SAME[:3], iou=0.5).tolist() == [0, 1, 2]
    assert without_duplicates(points[:0], SAME[:0], iou=0.5).tolist() == []


def test_equal_boxes_are_one() -> None:
    assert without_duplicates(BOXES[[0, 0, 0]], SAME[:3], iou=0.99).tolist() == [0]


def test_detections_keep_their_duplicates_unless_asked() -> None:
    output = ImageOutput(np.array([0.9, 0.8, 0.7, 0.6], np.float32), SAME, BOXES / np.float32(10))
    geometry = Geometry(original=(10, 10), resized=(10, 10))

    everything = to_detections(output, geometry)
    best_two = to_detections(output, geometry, nms_iou=0.5, top_k=2)

    assert len(everything) == 4
    assert best_two.scores.tolist() == output.scores[[0, 2]].tolist()
