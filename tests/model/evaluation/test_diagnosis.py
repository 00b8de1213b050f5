"""Why AP is near 0: reported for damaged perfect detections, never for bad ones."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.evaluate import main
from model.evaluation.coco_metrics import Metrics, score
from model.evaluation.diagnosis import explain

DENSE = Path("tests/data/cases/eval-dense")
Entry = dict[str, Any]
IDS, CLASS_IDS = [3 * i + 5 for i in range(30)], [2, 3, 4, 7, 8, 11]
CATEGORIES = [{"id": i, "name": f"thing {i}"} for i in CLASS_IDS]


def _image(image_id: int, rng: np.random.Generator) -> Entry:
    width, height = (int(side) for side in rng.integers(200, 640, 2))
    return {"id": image_id, "file_name": f"{7919 * image_id % 997}.png",
            "width": width, "height": height}  # fmt: skip


def _object(image: Entry, category_id: int, rng: np.random.Generator) -> Entry:
    w, h = rng.uniform(0.1, 0.4, 2) * (image["width"], image["height"])
    x, y = rng.uniform(0, 1, 2) * (image["width"] - w, image["height"] - h)
    return {"id": 0, "image_id": image["id"], "category_id": category_id, "bbox": [x, y, w, h]}


def _truth(seed: int, class_ids: Sequence[int] = CLASS_IDS) -> dict[str, Any]:
    """Images of several sizes with three objects each."""
    rng = np.random.default_rng(seed)
    images = [_image(image_id, rng) for image_id in IDS]
    objects = [_object(i, int(rng.choice(class_ids)), rng) for i in images for _ in range(3)]
    categories = [{"id": i, "name": f"thing {i}"} for i in class_ids]
    return {"images": images, "annotations": objects, "categories": categories}


def _results(objects: Sequence[Entry]) -> list[Entry]:
    fields = ("image_id", "category_id", "bbox")
    return [{field: o[field] for field in fields} | {"score": 0.9} for o in objects]


TRUTH = _truth(0)
IMAGES = {image["id"]: image for image in TRUTH["images"]}
PERFECT = _results(TRUTH["annotations"])


def _resized(x: float, y: float, w: float, h: float, width: int, height: int) -> Sequence[float]:
    scale = min(800 / min(width, height), 1333 / max(width, height))
    return [scale * value for value in (x, y, w, h)]


def _times(scale: float, *box: float) -> Sequence[float]:
    return [scale * value for value in box]


BOXES: dict[str, Callable[..., Sequence[float]]] = {
    "[x1, y1, x2, y2]": lambda x, y, w, h, sx, sy: (x, y, x + w, y + h),
    "[centre x, centre y, width, height]": lambda x, y, w, h, sx, sy: (
        x + w / 2, y + h / 2, w, h,
    ),
    "[y, x, height, width]": lambda x, y, w, h, sx, sy: (y, x, h, w),
    "normalised to 0..1, [x, y, width, height]": lambda x, y, w, h, sx, sy: (
        x / sx, y / sy, w / sx, h / sy,
    ),
    "normalised to 0..1, [x1, y1, x2, y2]": lambda x, y, w, h, sx, sy: (
        x / sx, y / sy, (x + w) / sx, (y + h) / sy,
    ),
    "normalised to 0..1, [centre x, centre y, width, height]": lambda x, y, w, h, sx, sy: (
        (x + w / 2) / sx, (y + h / 2) / sy, w / sx, h / sy,
    ),
    "normalised to 0..1000, [y1, x1, y2, x2]": lambda x, y, w, h, sx, sy: (
        1000 * y / sy, 1000 * x / sx, 1000 * (y + h) / sy, 1000 * (x + w) / sx,
    ),
    "pixels of the image resized to 800x1333": _resized,
    "normalised to 0..100, [x1, y1, x2, y2]": lambda x, y, w, h, sx, sy: (
        100 * x / sx, 100 * y / sy, 100 * (x + w) / sx, 100 * (y + h) / sy,
    ),
    "pixels of the image resized to 800x1333, [x1, y1, x2, y2]": lambda x, y, w, h, sx, sy: (
        _resized(x, y, x + w, y + h, sx, sy)
    ),
    "squeezed to 640x640, [x, y, width, height]": lambda x, y, w, h, sx, sy: (
        640 * x / sx, 640 * y / sy, 640 * w / sx, 640 * h / sy,
    ),
    "with a long side of 1024, [centre x, centre y": lambda x, y, w, h, sx, sy: (
        _times(1024 / max(sx, sy), x + w / 2, y + h / 2, w, h)
    ),
    "with a short side of 600, [x1, y1, x2, y2]": lambda x, y, w, h, sx, sy: (
        _times(600 / min(sx, sy), x, y, x + w, y + h)
    ),
    "a square of 416x416 with the image in its middle, [x, y": lambda x, y, w, h, sx, sy: (
        _times(416 / max(sx, sy), x + max(0, sy - sx) / 2, y + max(0, sx - sy) / 2, w, h)
    ),
    "pixels of an image 0.25 times as large": lambda x, y, w, h, sx, sy: (
        x / 4, y / 4, w / 4, h / 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOXES)
def test_boxes_in_another_format_or_scale_are_reported(name: str) -> None:
    sizes = [(IMAGES[e["image_id"]]["width"], IMAGES[e["image_id"]]["height"]) for e in PERFECT]
    damaged = [entry | {"bbox": [float(x) for x in BOXES[name](*entry["bbox"], *size)]}
               for entry, size in zip(PERFECT, sizes, strict=True)]  # fmt: skip

    _assert_told(score(TRUTH, damaged), f"would be 1.000 if boxes were .*{re.escape(name)}")


def _assert_told(metrics: Metrics, message: str) -> None:
    (sentence,) = explain(metrics)

    assert metrics.numbers["AP"] < 0.1
    assert re.search(message, sentence)


def _shifted(field: str, shift: int) -> list[Entry]:
    """Perfect detections with one id for another, where the data set has that id."""
    known = {"image_id": IDS, "category_id": CLASS_IDS}[field]
    shifted = [entry | {field: entry[field] + shift} for entry in PERFECT]
    return [entry for entry in shifted if entry[field] in known]


@pytest.mark.parametrize(
    ("shift", "message"), [(1, "every category_id were one lower"), (-1, "one higher")]
)
def test_category_ids_that_are_shifted_are_reported(shift: int, message: str) -> None:
    damaged = _shifted("category_id", shift)

    _assert_told(score(TRUTH, damaged), message)


@pytest.mark.parametrize(("first", "message"), [(0, "from 0"), (1, "from 1")])
@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_places_in_place_of_ids_are_reported(field: str, first: int, message: str) -> None:
    truth = _truth(0, [3, 5, 4, 1, 0, 2])  # every place is an id of something else
    numbers = list(range(30))[::-1]
    renamed = dict(zip(IDS, numbers, strict=True))
    truth["images"] = [i | {"id": renamed[i["id"]]} for i in truth["images"]]
    truth["annotations"] = [a | {"image_id": renamed[a["image_id"]]} for a in truth["annotations"]]
    places = {"image_id": numbers, "category_id": [3, 5, 4, 1, 0, 2]}[field]
    damaged = [entry | {field: places.index(entry[field]) + first}
               for entry in _results(truth["annotations"])]  # fmt: skip
    known = [entry for entry in damaged if entry["image_id"] in numbers]

    sentences = explain(score(truth, known))

    assert f"{field} counted {message} in the data set's order" in sentences[0]


def test_images_numbered_by_sorted_file_names_are_reported() -> None:
    ids = list(range(30))
    renamed = dict(zip(IDS, ids, strict=True))
    truth = {**TRUTH, "images": [i | {"id": renamed[i["id"]]} for i in TRUTH["images"]],
             "annotations": [a | {"image_id": renamed[a["image_id"]]}
                             for a in TRUTH["annotations"]]}  # fmt: skip
    order = [i["id"] for i in sorted(truth["images"], key=lambda image: image["file_name"])]
    damaged = [entry | {"image_id": order.index(entry["image_id"])}
               for entry in _results(truth["annotations"])]  # fmt: skip

    _assert_told(score(truth, damaged), "would be 1.000 .*place among the sorted file names")


def test_permuted_classes_are_reported() -> None:
    other = dict(zip(CLASS_IDS, [7, 11, 8, 4, 2, 3], strict=True))
    damaged = [entry | {"category_id": other[entry["category_id"]]} for entry in PERFECT]

    _assert_told(score(TRUTH, damaged), r"would be 1\.000 .*permuted \(2 means 8 thing 8")


@pytest.mark.parametrize("seed", range(2))
def test_random_detections_have_no_cause(seed: int) -> None:
    random = _truth(seed + 1)["annotations"]

    metrics = score(TRUTH, _results(random))

    assert metrics.numbers["AP"] < 0.1
    assert explain(metrics) == []


@pytest.mark.parametrize("seed", range(2))
def test_right_boxes_with_random_classes_are_not_permuted(seed: int) -> None:
    class_ids = list(range(20))
    truth, random = _truth(seed, class_ids), _truth(seed + 100, class_ids)
    pairs = zip(_results(truth["annotations"]), random["annotations"], strict=True)

    metrics = score(truth, [entry | {"category_id": o["category_id"]} for entry, o in pairs])

    assert metrics.numbers["AP"] < 0.1
    assert explain(metrics) == []


@pytest.mark.filterwarnings("error")
def test_boxes_of_any_size_are_explained_without_a_warning() -> None:
    huge = [entry | {"bbox": [1e308, 1e308, 1e308, 1e308]} for entry in PERFECT]

    assert isinstance(explain(score(TRUTH, huge)), list)


def test_copies_of_detections_are_counted() -> None:
    (sentence,) = explain(score(TRUTH, PERFECT + PERFECT[:2]))

    assert f"same image, class, box and score: 2 of {len(PERFECT) + 2};" in sentence


def test_good_detections_need_no_explanation() -> None:
    assert explain(score(TRUTH, PERFECT)) == []


def test_no_detection_at_all_needs_no_explanation() -> None:
    assert explain(score(TRUTH, [])) == []


def test_more_than_100_objects_in_an_image_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--results", str(DENSE / "perfect.json"), "--data", str(DENSE / "d")])

    printed = capsys.readouterr().out
    assert status == 0
    assert "AP     0.406" in printed  # by COCO's rule, of 250 objects of one class
    assert "note: 1 image has up to 250 objects and 1 image has up to 250 detections" in printed
    assert "the 100 detections of the highest scores count in an image and class; 150 " in printed


def test_a_hundred_objects_are_within_the_limit() -> None:
    truth = json.loads((DENSE / "d/annotations/instances_val.json").read_text())
    truth["annotations"] = truth["annotations"][:100]

    assert explain(score(truth, _results(truth["annotations"]))) == []
