"""Explains a table of AP: COCO's limit of 100 detections, and why AP may be near 0.

A cause is named only if undoing it restores AP: the detections are read in another way and scored
again.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from model.evaluation.box_readings import box_readings
from model.evaluation.coco_metrics import Metrics, score
from model.evaluation.overlap import overlaps

Results = list[dict[str, Any]]
COCO_LIMIT = 100  # detections that count per image and class
_NEAR_ZERO = 0.1
_MIN_GAIN, _MIN_FACTOR = 0.1, 3.0  # gain of AP for a cause to be named
_NUM_IMAGES = 100  # scored again, some forty times
_MATCH_IOU = 0.5
_MAX_CHANCE = 1e-3  # that labels drawn at random look permuted
_MIN_EXPLAINED = 0.75  # of the matched boxes


class _Reading(NamedTuple):
    """Another reading of detections: the cause of the error, what to do, and the new detections."""

    cause: str
    remedy: str
    results: Results


def explain(metrics: Metrics) -> list[str]:
    """Sentences to print under a report; empty if there is nothing to say."""
    with np.errstate(over="ignore", invalid="ignore"):  # boxes may be of any size
        return [*_say_limit(metrics), *_say_copies(metrics), *_say_cause(metrics)]


def _say_limit(metrics: Metrics) -> Iterator[str]:
    objects = Counter(a["image_id"] for a in metrics.ground_truth["annotations"]
                      if not a.get("iscrowd"))  # fmt: skip
    detections = Counter(entry["image_id"] for entry in metrics.results)
    found = []
    for name, counts in (("objects", objects), ("detections", detections)):
        if many := [count for count in counts.values() if count > COCO_LIMIT]:
            plural = "image has" if len(many) == 1 else "images have"
            found.append(f"{len(many)} {plural} up to {max(many)} {name}")
    if found:
        pairs = Counter((e["image_id"], e["category_id"]) for e in metrics.results)
        cut = sum(count - COCO_LIMIT for count in pairs.values() if count > COCO_LIMIT)
        yield (
            f"{' and '.join(found)}: by COCO's rule the {COCO_LIMIT} detections of the highest "
            f"scores count in an image and class; {cut or 'none'} here did not"
        )


def _say_copies(metrics: Metrics) -> Iterator[str]:
    counts = Counter(
        (e["image_id"], e["category_id"], *e["bbox"], e["score"]) for e in metrics.results
    )
    if copies := sum(counts.values()) - len(counts):
        yield (
            f"detections that repeat another, with the same image, class, box and score: {copies} "
            f"of {len(metrics.results)}; each copy counts as a mistake; was a file joined with "
            "itself?"
        )


def _say_cause(metrics: Metrics) -> Iterator[str]:
    ap = metrics.numbers["AP"]
    if math.isnan(ap) or ap >= _NEAR_ZERO or not metrics.results:
        return
    truth = _restrict(metrics.ground_truth)
    scored = [(score(truth, reading.results).numbers["AP"], reading)
              for reading in _readings(metrics, truth) if reading.results]  # fmt: skip
    best, reading = max(scored, key=lambda pair: pair[0], default=(0.0, None))
    if reading is not None and best >= max(ap + _MIN_GAIN, _MIN_FACTOR * ap):
        yield (f"AP is {ap:.3f}, but would be {best:.3f} if {reading.cause}: {reading.remedy}")


def _restrict(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """Only the first images that have boxes, for speed."""
    used = {a["image_id"] for a in ground_truth["annotations"]}
    images = [image for image in ground_truth["images"] if image["id"] in used][:_NUM_IMAGES]
    kept = {image["id"] for image in images}
    annotations = [a for a in ground_truth["annotations"] if a["image_id"] in kept]
    return {**ground_truth, "images": images, "annotations": annotations}


def _readings(metrics: Metrics, truth: dict[str, Any]) -> Iterator[_Reading]:
    kept = {image["id"] for image in truth["images"]}
    results = [entry for entry in metrics.results if entry["image_id"] in kept]
    yield from _other_images(metrics, kept)
    yield from _other_categories(results, truth)
    yield from _other_boxes(results, truth)


def _other_images(metrics: Metrics, kept: set[int]) -> Iterator[_Reading]:
    images = metrics.ground_truth["images"]
    ids = [image["id"] for image in images]
    by_name = [image["id"] for image in sorted(images, key=lambda i: str(i.get("file_name")))]
    for cause, meant in _numberings("image_id", ids):
        yield _reassign(metrics.results, "image_id", meant, kept, cause)
    cause = "image_id were the image's place among the sorted file names"
    yield _reassign(metrics.results, "image_id", dict(enumerate(by_name)), kept, cause)


def _other_categories(results: Results, truth: dict[str, Any]) -> Iterator[_Reading]:
    ids = [category["id"] for category in truth["categories"]]
    for cause, meant in _numberings("category_id", ids):
        yield _reassign(results, "category_id", meant, set(ids), cause)
    if permuted := _fit_categories(results, truth):
        names = {category["id"]: category["name"] for category in truth["categories"]}
        changed = [(a, b) for a, b in permuted.items() if a != b]
        told = ", ".join(f"{a} means {b} {names[b]}" for a, b in changed[:5])
        cause = f"the classes were permuted ({told}{', ...' if len(changed) > 5 else ''})"
        yield _reassign(results, "category_id", permuted, set(ids), cause)


def _numberings(field: str, ids: Sequence[int]) -> list[tuple[str, dict[int, int]]]:
    """Common ways to number the same things: cause and {number in the results: id meant}."""
    return [
        (f"every {field} were one higher", {i - 1: i for i in ids}),
        (f"every {field} were one lower", {i + 1: i for i in ids}),
        (f"{field} counted from 0 in the data set's order", dict(enumerate(ids))),
        (f"{field} counted from 1 in the data set's order", dict(enumerate(ids, start=1))),
    ]


def _reassign(
    results: Results, field: str, meant: Mapping[int, int], kept: set[int], cause: str
) -> _Reading:
    read = [{**entry, field: meant[entry[field]]} for entry in results
            if meant.get(entry[field]) in kept]  # fmt: skip
    return _Reading(cause, f"write the {field} of the data set", read)


def _other_boxes(results: Results, truth: dict[str, Any]) -> Iterator[_Reading]:
    remedy = "write [x, y, width, height] in pixels of the image"
    for meant, boxes in box_readings(results, truth):
        yield _Reading(f"boxes were {meant}", remedy, _with_boxes(results, boxes))


def _with_boxes(results: Results, boxes: np.ndarray) -> Results:
    kept = np.flatnonzero(np.all(boxes[:, 2:] >= 0, axis=1)).tolist()
    return [{**results[index], "bbox": boxes[index].tolist()} for index in kept]


def _fit_categories(results: Results, truth: dict[str, Any]) -> dict[int, int] | None:
    """The permutation {category in the results: in the truth} that correct boxes suggest.

    None if random labels could fit their best permutation as well.
    """
    pairs = Counter(_matched_categories(results, truth))
    ids = sorted({i for pair in pairs for i in pair})
    total, number = sum(pairs.values()), len(ids)
    if number < 2:
        return None
    counts = np.array([[pairs[theirs, ours] for ours in ids] for theirs in ids])
    rows, columns = linear_sum_assignment(counts, maximize=True)
    explained = int(counts[rows, columns].sum())
    log_chance = (
        math.lgamma(number + 1)
        + math.log(math.comb(total, explained))
        - explained * math.log(number)
    )
    if explained < _MIN_EXPLAINED * total or log_chance > math.log(_MAX_CHANCE):
        return None
    return {ids[row]: ids[column] for row, column in zip(rows, columns, strict=True)
            if counts[row, column]}  # fmt: skip


def _matched_categories(results: Results, truth: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """For every object with a matching detection: the category of the best one, and its own."""
    by_image: dict[int, Results] = {}
    for entry in sorted(results, key=lambda entry: -entry["score"]):
        by_image.setdefault(entry["image_id"], []).append(entry)
    for annotation in truth["annotations"]:
        found = by_image.get(annotation["image_id"], [])
        if found and not annotation.get("iscrowd"):
            shares = overlaps(annotation["bbox"], [entry["bbox"] for entry in found])
            if (hits := np.flatnonzero(shares >= _MATCH_IOU)).size:
                yield found[hits[0]]["category_id"], annotation["category_id"]
