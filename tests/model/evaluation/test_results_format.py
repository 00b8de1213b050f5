"""Results files: what can be scored is, and the first entry that cannot is named."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from model.evaluate import main
from model.evaluation.coco_metrics import score
from model.evaluation.results_format import check_results, read_results, with_text_ids

ODD = Path("tests/data/cases/odd-results")
TRUTH = json.loads((ODD / "d/annotations/instances_val.json").read_text())
PERFECT = json.loads((ODD / "perfect.json").read_text())


def _with(**changes: Any) -> list[dict[str, Any]]:
    """Perfect detections of which the third has other values."""
    return [entry | changes if i == 2 else entry for i, entry in enumerate(PERFECT)]


@pytest.mark.parametrize("name", ["perfect.json", "float_ids.json"])
def test_what_has_every_field_is_scored(name: str) -> None:
    assert score(TRUTH, read_results(ODD / name, TRUTH)).numbers["AP"] == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown_category.json", r"entry 1: category_id 0 .*1 bolt, 2 nut, 3 washer.*add 1"),
        ("xyxy.json", r"entry 0: bbox is \[88, 43, 125, 64\].*image 1 \(128x96\).*corners"),
        ("negative_wh.json", r"entry 0: bbox is \[125, 64, -37, -21\], of negative width"),
    ],
)
def test_a_file_is_refused_with_its_first_offending_entry(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--results", str(ODD / name), "--data", str(ODD / "d")])

    assert status == 1
    assert f"{name}: entry" in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(ValueError, match=message):
        read_results(ODD / name, TRUTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [1, 2, math.nan, 4]}, r"bbox is \[1, 2, NaN, 4\]"),
        ({"bbox": [1, 2, math.inf, 4]}, r"bbox is \[1, 2, Infinity, 4\]"),
        ({"bbox": [1, 2, 10**400, 4]}, r"bbox is \[1, 2, 1000"),
        ({"score": 10**400}, "score is 1000"),
        ({"image_id": 10**30}, "image_id is 1000"),
        ({"bbox": [1, 2, "3", 4]}, r'bbox is \[1, 2, "3", 4\]'),
        ({"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\]"),
        ({"bbox": None}, "bbox is null"),
        ({"bbox": {"x": 1}}, "bbox is an object"),
        ({"bbox": [1, 2, 3, -1]}, r"bbox is \[1, 2, 3, -1\], of negative"),
        ({"score": None}, "score is null"),
        ({"score": "0.9"}, 'score is the text "0.9"'),
        ({"score": True}, "score is true"),
        ({"score": math.nan}, "score is NaN"),
        ({"score": 87.5}, "score is 87.5; expected a number from 0 to 1.*divide percentages"),
        ({"score": 1.001}, "score is 1.001"),
        ({"score": -0.2}, "score is -0.2; .*sigmoid of logits"),
        ({"category_id": "nut"}, 'category_id is the text "nut".*its id is 2'),
        ({"category_id": None}, "category_id is null"),
        ({"category_id": 1.5}, "category_id is 1.5"),
        (
            {"category_id": 99},
            "category_id 99 is not among the categories of the data set, 3 in all.*leave out",
        ),
        ({"image_id": "2.png"}, 'image_id is the text "2.png".*its id is 3'),
        (
            {"image_id": 77},
            "image_id 77 is not among the images of the data set, 4 in all.*another data set",
        ),
        ({"image_id": math.nan}, "image_id is NaN"),
        ({"image_id": [1]}, r"image_id is \[1\]"),
    ],
)
def test_the_first_offending_entry_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^entry 2: {message}"):
        check_results(_with(**changes), TRUTH)


@pytest.mark.parametrize("entry", [None, "x", 3, []])
def test_an_entry_that_is_not_an_object_is_named(entry: Any) -> None:
    with pytest.raises(ValueError, match=r"entry 8: is .*expected an object with image_id"):
        check_results([*PERFECT, entry], TRUTH)


@pytest.mark.parametrize("field", ["image_id", "category_id", "bbox", "score"])
def test_a_missing_field_is_named(field: str) -> None:
    entries = [{k: v for k, v in PERFECT[0].items() if k != field}]

    with pytest.raises(ValueError, match=rf"entry 0: {field} missing; .*results format"):
        check_results(entries, TRUTH)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "an object without entries"),
        ({"annotations": []}, "write the list 'annotations' alone"),
        ({"results": PERFECT}, "an object with results; write the list 'results' alone"),
        ({"info": {}, "predictions": PERFECT}, "write the list 'predictions' alone"),
        ({**TRUTH, "annotations": PERFECT}, "write the list 'annotations' alone"),
        ({"images": TRUTH["images"], "boxes": [[1, 2]]}, "with images, boxes; expected COCO's"),
        ({"detections": {"1": PERFECT}}, "an object with detections; expected COCO's"),
        (PERFECT[0], r"seems to be one detection; write \[ before and \] behind it"),
        ("x", "holds text"),
        (None, "holds null"),
    ],
)
def test_a_file_that_is_not_a_list_is_refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_results(content, TRUTH)


@pytest.mark.parametrize("data", [b"", b"[{", b"\xff\xfe", b"[" * 99999])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)

    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        read_results(tmp_path / "x.json", TRUTH)


def test_one_detection_per_line_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(entry) for entry in PERFECT))

    with pytest.raises(ValueError, match=r"x\.jsonl: not valid JSON: .*Put them into one list"):
        read_results(tmp_path / "x.jsonl", TRUTH)


@pytest.mark.parametrize("score", [0, 1, 1.0000001])
def test_scores_may_be_rounded(score: float) -> None:
    assert check_results(_with(score=score), TRUTH) == _with(score=score)


@pytest.mark.parametrize(
    ("shift", "message"), [(1, "one too high: subtract 1"), (-1, "one too low: add 1")]
)
def test_image_ids_counted_otherwise_are_recognised(shift: int, message: str) -> None:
    shifted = [entry | {"image_id": entry["image_id"] + shift} for entry in PERFECT]

    with pytest.raises(ValueError, match=f"every image_id of the file seems {message}"):
        check_results(shifted, TRUTH)


def test_ids_that_are_numbers_as_text_are_those_numbers() -> None:
    texts = [entry | {"image_id": str(entry["image_id"])} for entry in PERFECT]

    assert check_results(texts, TRUTH) == PERFECT


def test_text_ids_are_those_of_the_data_set() -> None:
    truth = TRUTH | {
        section: [{**entry, "text_id": f"{section}-{entry['id']:04}"} for entry in TRUTH[section]]
        for section in ("images", "categories")
    }
    texts = with_text_ids(PERFECT, truth)

    assert texts[0]["image_id"] == f"images-{PERFECT[0]['image_id']:04}"
    assert texts[0]["category_id"] == f"categories-{PERFECT[0]['category_id']:04}"
    assert check_results(texts, truth) == PERFECT


def test_boxes_that_stick_out_a_little_are_not_corners() -> None:
    unclipped = _with(bbox=[86, 45, 46, 55])

    assert check_results(unclipped, TRUTH) == unclipped


def test_what_scoring_does_not_need_is_left_out() -> None:
    extra = [entry | {"caption": "x", "segmentation": 1, "iscrowd": 1} for entry in PERFECT]

    assert check_results(extra, TRUTH) == PERFECT


def test_no_detection_at_all_is_a_result() -> None:
    assert check_results([], TRUTH) == []
