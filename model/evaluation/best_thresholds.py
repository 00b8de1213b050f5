"""Finds the thresholds with the best F1, from COCO's matching at an IoU of 0.5."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from bundle.thresholds import OperatingPoint, Thresholds

IOU = 0.5
NO_BOX, ON_CROWD = -1, -2  # what a detection finds instead of a box
MIN_BOXES = 10  # of a class; with fewer, a separate threshold would be chance
# The steps of the page's slider. Whole hundredths also say how finely F1 can tell.
CANDIDATES = np.arange(1, 100, dtype=np.float32) / 100


class Scored(NamedTuple):
    """Detections of some classes: scores (N,) float32 and whether each is right (N,) bool.

    num_boxes: how many there were to find.
    """

    scores: npt.NDArray[np.float32]
    is_right: npt.NDArray[np.bool_]
    num_boxes: int


def best_thresholds(by_class: Mapping[int, Scored]) -> Thresholds | None:
    """The best thresholds for all classes together and for each; None if no detection is right."""
    overall = _best(pool(by_class.values()))
    if overall is None:
        return None
    points = {
        category_id: _best(one)
        for category_id, one in by_class.items()
        if one.num_boxes >= MIN_BOXES
    }
    found = {category_id: point for category_id, point in points.items() if point}
    return Thresholds(overall=overall, by_class=found)


def pool(classes: Iterable[Scored]) -> Scored:
    """The detections of several classes together."""
    scored = list(classes)
    return Scored(
        np.concatenate([one.scores for one in scored]),
        np.concatenate([one.is_right for one in scored]),
        sum(one.num_boxes for one in scored),
    )


def _best(scored: Scored) -> OperatingPoint | None:
    """The candidate with the best F1; of equally good neighbours, the middle one."""
    num_right, num_shown = count_from(scored, CANDIDATES)
    f1 = 2 * num_right / np.maximum(num_shown + scored.num_boxes, 1)
    if not f1.any():
        return None
    ties = np.flatnonzero(f1 == f1.max())
    run = ties[: np.flatnonzero(np.diff(ties, append=len(f1) + 1) > 1)[0] + 1]
    best = run[len(run) // 2]
    return OperatingPoint(
        threshold=round(float(CANDIDATES[best]), 2),
        precision=num_right[best] / num_shown[best],
        recall=num_right[best] / scored.num_boxes,
    )


def count_from(
    scored: Scored, thresholds: np.ndarray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many detections are right, and how many there are, from each threshold (N,) on."""
    ascending = np.argsort(scored.scores)
    right_from = np.append(np.cumsum(scored.is_right[ascending][::-1])[::-1], 0)
    first = np.searchsorted(scored.scores[ascending], thresholds)
    return right_from[first], len(scored.scores) - first


def match_detections(truth: COCO, detections: COCO) -> npt.NDArray[np.int64]:
    """(N,): which box each detection finds, by its position among the annotations.

    As in COCO's AP, each box is found by one detection of its class, in order of score. A detection
    that finds none is NO_BOX; one on a box that is marked as a crowd is ON_CROWD, and counts
    neither way.

    Args:
        truth: its annotations have the ids 1, 2, ..., in their order.
    """
    evaluation = COCOeval_faster(truth, detections, "bbox", print_function=lambda *_: None)
    evaluation.params.iouThrs = np.array([IOU])
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [len(detections.anns)]
    evaluation.evaluate()
    evaluation.accumulate()
    matched = np.full(len(detections.anns), NO_BOX)
    for pair in evaluation.eval["matched"]:  # "detection_truth", by the ids of both, from 1
        detection_id, box_id = map(int, pair.split("_"))
        is_crowd = truth.anns[box_id]["iscrowd"]
        matched[detection_id - 1] = ON_CROWD if is_crowd else box_id - 1
    return matched


def score_by_class(truth: COCO, detections: COCO, *, matched: np.ndarray) -> dict[int, Scored]:
    """Category id -> its detections, without those on crowds; `matched` as above."""
    kept: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for entry, box in zip(detections.anns.values(), matched.tolist(), strict=True):
        if box != ON_CROWD:
            kept[entry["category_id"]].append((entry["score"], box != NO_BOX))
    counts = Counter(entry["category_id"] for entry in truth.anns.values() if not entry["iscrowd"])
    return {
        category_id: Scored(
            np.array([score for score, _ in kept[category_id]], np.float32),
            np.array([is_right for _, is_right in kept[category_id]], np.bool_),
            counts[category_id],
        )
        for category_id in truth.getCatIds()
    }
