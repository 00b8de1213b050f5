"""The scores of the best F1, against counting by hand and by a plain loop."""

import json
from pathlib import Path
from typing import Any

import pytest

from bundle.thresholds import OperatingPoint
from model.evaluation.best_thresholds import NO_BOX
from model.evaluation.coco_metrics import score

DEMO = Path("tests/data/coco_demo100")


def truth_of(*boxes: tuple[int, list[int]], crowds: tuple[int, ...] = ()) -> dict[str, Any]:
    """One image of 400 x 400 pixels with boxes of the categories 7 and 8."""
    return {
        "images": [{"id": 1, "height": 400, "width": 400}],
        "annotations": [
            {"id": at, "image_id": 1, "category_id": category_id, "bbox": box,
             "iscrowd": int(at in crowds)}
            for at, (category_id, box) in enumerate(boxes)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
    }  # fmt: skip


def found(category_id: int, box: list[int], *, at: float) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category_id, "bbox": box, "score": at}


def column(number: int) -> list[int]:
    """One of twenty boxes that do not touch."""
    return [20 * number, 0, 15, 15]


def test_the_threshold_is_between_the_last_right_and_the_first_wrong_one() -> None:
    truth = truth_of((7, column(0)), (7, column(1)))
    results = [
        found(7, column(0), at=0.9),
        found(7, column(1), at=0.7),
        found(7, column(2), at=0.3),
    ]

    thresholds = score(truth, results).thresholds

    assert thresholds is not None
    assert thresholds.overall == OperatingPoint(threshold=0.51, precision=1, recall=1)


def test_of_thresholds_that_are_equally_good_it_is_the_middle_one_of_the_lowest_run() -> None:
    truth = truth_of((7, column(0)), (7, column(1)))
    results = [  # F1 is 2/3 up to a score of 0.2, and again above 0.6
        found(7, column(0), at=0.8),
        found(7, column(2), at=0.6),
        found(7, column(3), at=0.25),
        found(7, column(1), at=0.2),
    ]

    thresholds = score(truth, results).thresholds

    assert thresholds is not None
    assert thresholds.overall.threshold == 0.11


def test_where_all_thresholds_are_equally_good_it_is_the_middle_one() -> None:
    thresholds = score(truth_of((7, column(0))), [found(7, column(0), at=1.0)]).thresholds

    assert thresholds is not None
    assert thresholds.overall.threshold == 0.5


def test_a_detection_is_right_if_half_of_both_boxes_is_common_however_large_they_are() -> None:
    truth = truth_of((7, [0, 0, 390, 390]), (8, [0, 0, 100, 100]))

    results = [
        found(7, [0, 0, 390, 390], at=0.9),
        found(8, [0, 0, 100, 52], at=0.9),  # of the box
        found(8, [0, 0, 100, 48], at=0.8),
    ]

    assert score(truth, results).matched.tolist() == [0, 1, NO_BOX]


def test_the_last_of_many_detections_in_an_image_may_be_the_right_one() -> None:
    results = [found(7, [0, 300, 20, 20], at=0.9) for _ in range(150)]

    matched = score(truth_of((7, column(0))), [*results, found(7, column(0), at=0.1)]).matched

    assert matched.tolist() == [NO_BOX] * 150 + [0]


def test_a_second_detection_of_a_box_is_wrong() -> None:
    truth = truth_of((7, column(0)))
    results = [found(7, column(0), at=0.8), found(7, column(0), at=0.6)]

    thresholds = score(truth, results).thresholds

    assert thresholds is not None
    assert 0.6 < thresholds.overall.threshold <= 0.8
    assert thresholds.overall.precision == 1


def test_a_detection_of_another_class_or_too_far_off_is_wrong() -> None:
    truth = truth_of((7, column(0)), (7, column(1)))
    results = [
        found(7, column(0), at=0.9),
        found(8, column(1), at=0.8),
        found(7, [30, 0, 15, 15], at=0.8),  # a third of it is the second box
    ]

    thresholds = score(truth, results).thresholds

    assert thresholds is not None
    assert thresholds.overall.threshold > 0.8
    assert thresholds.overall.recall == 0.5


def test_crowds_count_neither_way() -> None:
    truth = truth_of((7, column(0)), (7, [100, 100, 200, 200]), crowds=(1,))
    results = [found(7, column(0), at=0.4), found(7, [120, 120, 50, 50], at=0.9)]

    thresholds = score(truth, results).thresholds

    assert thresholds is not None
    assert thresholds.overall.precision == 1
    assert thresholds.overall.recall == 1
    assert thresholds.overall.threshold <= 0.4


def test_a_class_with_ten_boxes_has_its_own_threshold_and_one_with_nine_has_not() -> None:
    cats = [(7, column(number)) for number in range(10)]
    dogs = [(8, column(number)) for number in range(10, 19)]
    results = [
        *(found(7, box, at=0.8) for _, box in cats),
        *(found(8, box, at=0.4) for _, box in dogs),
        found(7, column(19), at=0.5),
    ]

    thresholds = score(truth_of(*cats, *dogs), results).thresholds

    assert thresholds is not None
    assert thresholds.by_class.keys() == {7}
    assert 0.5 < thresholds.by_class[7].threshold <= 0.8
    assert thresholds.overall.threshold <= 0.4
    assert thresholds.lowest_scores([8, 7]).tolist() == pytest.approx(
        [thresholds.overall.threshold, thresholds.by_class[7].threshold]
    )


@pytest.mark.parametrize(
    "results", [[], [found(7, column(5), at=0.9)], [found(7, column(0), at=0.001)]]
)
def test_there_is_none_where_no_detection_is_right(results: list[dict[str, Any]]) -> None:
    assert score(truth_of((7, column(0))), results).thresholds is None


def test_there_is_none_without_boxes() -> None:
    assert score(truth_of(), [found(7, column(0), at=0.9)]).thresholds is None


def overlap(one: list[float], other: list[float]) -> float:
    """IoU of two boxes (x, y, width, height)."""
    sides = [
        max(0.0, min(one[a] + one[a + 2], other[a] + other[a + 2]) - max(one[a], other[a]))
        for a in (0, 1)
    ]
    common = sides[0] * sides[1]
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def count_right(truth: dict[str, Any], results: list[dict[str, Any]]) -> int:
    """How many detections are right, by a plain loop over them, the surest first."""
    taken: set[int] = set()
    for one in sorted(results, key=lambda one: -one["score"]):
        boxes = [
            box
            for box in truth["annotations"]
            if (box["image_id"], box["category_id"]) == (one["image_id"], one["category_id"])
        ]
        free = [box for box in boxes
                if box["id"] not in taken and overlap(one["bbox"], box["bbox"]) >= 0.5]  # fmt: skip
        if free:
            taken.add(max(free, key=lambda box: overlap(one["bbox"], box["bbox"]))["id"])
    return len(taken)


def test_no_other_hundredth_is_better_on_the_demo_results_of_coco() -> None:
    truth = json.loads((DEMO / "instances.json").read_text())
    results = json.loads((DEMO / "instances_val2014_fakebbox100_results.json").read_text())
    crowded = {box["image_id"] for box in truth["annotations"] if box["iscrowd"]}
    truth["annotations"] = [box for box in truth["annotations"] if box["image_id"] not in crowded]
    results = [one for one in results if one["image_id"] not in crowded]
    num_boxes = len(truth["annotations"])

    best = score(truth, results).thresholds

    assert best is not None
    for hundredth in range(5, 100, 5):
        shown = [one for one in results if one["score"] >= hundredth / 100]
        assert 2 * count_right(truth, shown) / (len(shown) + num_boxes) <= best.overall.f1 + 1e-9
    shown = [one for one in results if one["score"] >= best.overall.threshold]
    assert best.overall.precision == pytest.approx(count_right(truth, shown) / len(shown))
    assert best.overall.recall == pytest.approx(count_right(truth, shown) / num_boxes)
