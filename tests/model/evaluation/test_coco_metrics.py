"""COCO's numbers: golden values, undefined ones, odd ground truth."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.coco_metrics import format_report, score

DEMO = Path("tests/data/coco_demo100")
# tests/data/coco_demo100/SOURCE.md
GOLDEN = {
    "AP": 0.5046, "AP50": 0.6970, "AP75": 0.5730, "APs": 0.5856, "APm": 0.5194, "APl": 0.5014,
    "AR1": 0.3868, "AR10": 0.5937, "AR100": 0.5954, "ARs": 0.6398, "ARm": 0.5664, "ARl": 0.5643,
}  # fmt: skip


@pytest.fixture(scope="module")
def demo():
    """Ground truth and detections of the COCO API's demo."""
    ground_truth = json.loads((DEMO / "instances.json").read_text())
    results = json.loads((DEMO / "instances_val2014_fakebbox100_results.json").read_text())
    return ground_truth, results


@pytest.fixture
def one_box():
    """One image with one box of class 7, and a detection that finds it exactly."""
    ground_truth = {
        "images": [{"id": 1, "height": 50, "width": 50}],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 7, "bbox": [5, 5, 20, 20]}],
        "categories": [{"id": 7, "name": "cat"}],
    }
    return ground_truth, [{"image_id": 1, "category_id": 7, "bbox": [5, 5, 20, 20], "score": 0.9}]


def test_the_twelve_numbers_are_those_of_the_coco_api(demo):
    metrics = score(*demo)

    assert list(metrics.numbers) == list(GOLDEN)
    assert metrics.numbers == pytest.approx(GOLDEN, abs=1e-4)


def test_ap_is_the_mean_of_the_classes_that_have_boxes(demo):
    metrics = score(*demo)

    with_boxes = [entry.ap for entry in metrics.per_class if entry.num_boxes]
    assert len(metrics.per_class) == 80
    assert sum(entry.num_boxes for entry in metrics.per_class) == 839 - 9
    assert sum(with_boxes) / len(with_boxes) == pytest.approx(metrics.numbers["AP"])


def test_what_is_told_by_class_size_and_recall_are_parts_of_the_twelve_numbers(demo):
    metrics = score(*demo)

    by_class = [(entry.ap50, *entry.ap_by_size) for entry in metrics.per_class]
    expected = [metrics.numbers[name] for name in ("AP50", "APs", "APm", "APl")]
    assert np.nanmean(by_class, axis=0) == pytest.approx(expected)
    assert metrics.precision.shape == (10, 101)
    assert metrics.precision.mean() == pytest.approx(metrics.numbers["AP"])
    assert metrics.precision[0].mean() == pytest.approx(metrics.numbers["AP50"])


def test_the_report_ends_its_table_with_the_number_of_all_boxes(demo):
    lines = format_report(score(*demo)).splitlines()

    assert lines[81].split()[:2] == ["all", "830"]


def test_scoring_changes_neither_ground_truth_nor_results(one_box):
    before = json.dumps(one_box)

    score(*one_box)

    assert json.dumps(one_box) == before


def test_an_annotation_with_id_0_and_no_area_counts(one_box):
    metrics = score(*one_box)

    assert metrics.numbers["AP"] == 1.0
    assert metrics.per_class[0].ap50 == 1.0


def test_sizes_without_boxes_are_undefined_and_left_out_of_json(one_box):
    metrics = score(*one_box)

    assert math.isnan(metrics.numbers["APl"])
    assert "APl" not in metrics.defined
    assert metrics.defined["APs"] == 1.0
    assert "APl      n/a" in format_report(metrics)


def test_without_any_ground_truth_every_number_is_undefined(one_box):
    ground_truth, results = one_box
    ground_truth["annotations"] = []

    metrics = score(ground_truth, results)

    assert metrics.defined == {}
    assert format_report(metrics).count("n/a") == 12 + 2 + 2 * 4


def test_a_long_name_does_not_widen_the_table(one_box):
    ground_truth, results = one_box
    ground_truth["categories"][0]["name"] = "washer " * 500

    lines = format_report(score(ground_truth, results)).splitlines()

    assert lines[1].startswith("washer washer")
    assert max(map(len, lines)) < 130


def test_no_detection_at_all_is_an_ap_of_zero(one_box):
    assert score(one_box[0], []).numbers["AP"] == 0.0


def test_a_detection_inside_a_crowd_is_not_a_mistake(one_box):
    ground_truth, results = one_box
    ground_truth["annotations"].append({
        "id": 9, "image_id": 1, "category_id": 7, "bbox": [30, 30, 20, 20], "iscrowd": 1,
    })  # fmt: skip
    in_crowd = {"image_id": 1, "category_id": 7, "bbox": [35, 35, 9, 9], "score": 0.95}

    assert score(ground_truth, [in_crowd, *results]).numbers["AP"] == 1.0


def test_the_order_of_categories_is_that_of_the_file(one_box):
    ground_truth, results = one_box
    ground_truth["categories"].append({"id": 2, "name": "dog"})

    metrics = score(ground_truth, results)

    assert [entry.info.name for entry in metrics.per_class] == ["cat", "dog"]
    assert [entry.num_boxes for entry in metrics.per_class] == [1, 0]
    assert [entry.ap50 for entry in metrics.per_class] == pytest.approx([1, math.nan], nan_ok=True)
