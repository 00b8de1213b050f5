"""Errors by image and the confusion matrix, of detections made by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.thresholds import DEFAULT_THRESHOLD
from model.evaluation.coco_metrics import score
from model.evaluation.errors import Confusion, ImageErrors, find_errors, lowest_scores, worst
from tests.model.evaluation.hand_made import column, found, truth_of

DEMO = Path("tests/data/coco_demo100")
# Two images, each with two cats and a dog.
BOXES = [(image, category, column(number))
         for image in (1, 2) for number, category in enumerate((7, 7, 8))]  # fmt: skip
TRUTH = truth_of(*BOXES)


def errors_of(
    truth: dict[str, Any], results: list[dict[str, Any]], *, lowest: float = 0.5
) -> list[ImageErrors]:
    return find_errors(score(truth, results), {7: lowest, 8: lowest})


def matrix(truth: dict[str, Any], results: list[dict[str, Any]]) -> list[list[int]]:
    """Rows cat, dog, no box; columns cat, dog, missed."""
    counts: list[list[int]] = Confusion.of(errors_of(truth, results), truth).counts.tolist()
    return counts


def test_perfect_detections_are_on_the_diagonal() -> None:
    assert matrix(TRUTH, [found(*box) for box in BOXES]) == [[4, 0, 0], [0, 2, 0], [0, 0, 0]]


def test_shifted_detections_are_false_and_their_boxes_missed() -> None:
    shifted = [found(image, category, [x + 10, y + 10, w, h])
               for image, category, (x, y, w, h) in BOXES]  # fmt: skip

    assert matrix(TRUTH, shifted) == [[0, 0, 4], [0, 0, 2], [4, 2, 0]]


def test_swapped_classes_are_off_the_diagonal() -> None:
    swapped = [found(image, 15 - category, box) for image, category, box in BOXES]

    assert matrix(TRUTH, swapped) == [[0, 4, 0], [2, 0, 0], [0, 0, 0]]


def test_no_detections_miss_all_boxes() -> None:
    assert matrix(TRUTH, []) == [[0, 0, 4], [0, 0, 2], [0, 0, 0]]


def test_a_detection_counts_from_the_threshold_of_its_class_on() -> None:
    results = [found(1, 7, column(0), at=0.5), found(1, 8, column(2), at=0.5)]

    image, _ = find_errors(score(TRUTH, results), {7: 0.5, 8: 0.51})

    assert [box["bbox"] for _, box in image.right] == [column(0)]
    assert [box["bbox"] for box in image.missed] == [column(1), column(2)]


def test_a_box_is_found_by_its_class_before_it_is_confused() -> None:
    truth = truth_of((1, 7, column(0)))

    (image, _) = errors_of(truth, [found(1, 8, column(0), at=0.9), found(1, 7, column(0), at=0.6)])

    assert [entry["score"] for entry, _ in image.right] == [0.6]
    assert [entry["score"] for entry in image.false] == [0.9]
    assert image.confused == []


def test_the_surest_of_two_detections_is_confused_and_the_other_false() -> None:
    truth = truth_of((1, 7, column(0)))

    (image, _) = errors_of(truth, [found(1, 8, column(0), at=0.6), found(1, 8, column(0), at=0.9)])

    assert [entry["score"] for entry, _ in image.confused] == [0.9]
    assert [entry["score"] for entry in image.false] == [0.6]
    assert image.num_errors == 2
    assert image.wrong_score == pytest.approx(1.5)


def test_a_detection_takes_the_box_that_it_overlaps_most() -> None:
    truth = truth_of((1, 7, [0, 0, 100, 100]), (1, 7, [10, 0, 100, 100]))

    (image, _) = errors_of(truth, [found(1, 8, [9, 0, 100, 100])])

    assert [box["bbox"] for _, box in image.confused] == [[10, 0, 100, 100]]
    assert [box["bbox"] for box in image.missed] == [[0, 0, 100, 100]]


def test_crowds_and_detections_on_them_count_neither_way() -> None:
    truth = truth_of((1, 7, [100, 100, 200, 200]), crowds=[0])

    assert matrix(truth, [found(1, 7, [120, 120, 50, 50])]) == [[0, 0, 0]] * 3


def test_the_worst_images_have_the_most_errors_and_then_the_highest_wrong_scores() -> None:
    truth = truth_of((1, 7, column(0)), num_images=4)
    results = [found(1, 7, column(0)), found(2, 7, column(1), at=0.6),
               found(3, 7, column(1), at=0.8), found(4, 7, column(1), at=0.6),
               found(4, 7, column(2), at=0.6)]  # fmt: skip

    errors = errors_of(truth, results)

    assert [image.image_id for image in worst(errors, 50)] == [4, 3, 2]
    assert [image.image_id for image in worst(errors, 1)] == [4]


def test_the_matrix_agrees_with_precision_and_recall_at_the_best_thresholds() -> None:
    truth = json.loads((DEMO / "instances.json").read_text())
    results = json.loads((DEMO / "instances_val2014_fakebbox100_results.json").read_text())
    metrics = score(truth, results)

    counts = Confusion.of(
        find_errors(metrics, lowest_scores(metrics.thresholds, truth)), truth
    ).counts

    assert metrics.thresholds is not None
    (person, point) = next(iter(metrics.thresholds.by_class.items()))
    row = [category["id"] for category in truth["categories"]].index(person)
    assert counts[row, row] / counts[:, row].sum() == pytest.approx(point.precision)
    assert counts[row, row] / counts[row].sum() == pytest.approx(point.recall)
    assert counts[:-1].sum() == 839 - 9


def test_without_thresholds_the_default_of_the_service_is_used() -> None:
    assert lowest_scores(None, TRUTH) == {7: DEFAULT_THRESHOLD, 8: DEFAULT_THRESHOLD}


def test_classes_with_few_errors_are_summed() -> None:
    counts = np.array(
        [[5, 0, 0, 3, 0], [0, 6, 1, 0, 0], [0, 0, 7, 0, 0], [2, 0, 0, 8, 1], [0, 0, 4, 0, 0]]
    )

    limited = Confusion(("a", "b", "c", "d"), counts).limited(3)

    assert limited.names == ("a", "d", "2 other classes")
    assert limited.counts.tolist() == [[5, 3, 0, 0], [2, 8, 0, 1], [0, 0, 14, 0], [0, 0, 4, 0]]


def test_the_most_common_confusions_are_named() -> None:
    counts = np.array([[5, 1, 0, 9], [0, 6, 4, 9], [2, 0, 7, 9], [9, 9, 9, 0]])

    common = Confusion(("a", "b", "c"), counts).most_common(2)

    assert common == [("b", "c", 4), ("c", "a", 2)]
