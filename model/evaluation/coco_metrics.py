"""COCO's box metrics: the twelve numbers and AP by class, from ground truth and detections."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from bundle.manifest import ClassInfo
from bundle.terminal import shortened
from bundle.thresholds import OperatingPoint, Thresholds
from model.evaluation.best_thresholds import (
    Scored,
    best_thresholds,
    match_detections,
    pool,
    score_by_class,
)

# (name, what it covers), in the order of COCO's evaluation
NUMBERS = (
    ("AP", "IoU 0.50:0.95"), ("AP50", "IoU 0.50"), ("AP75", "IoU 0.75"),
    ("APs", "boxes under 32 x 32 pixels"), ("APm", "32 x 32 to 96 x 96"), ("APl", "larger"),
    ("AR1", "recall, 1 detection an image"), ("AR10", "10 detections"),
    ("AR100", "100 detections"), ("ARs", "boxes under 32 x 32 pixels"),
    ("ARm", "32 x 32 to 96 x 96"), ("ARl", "larger"),
)  # fmt: skip


@dataclass(frozen=True)
class ClassMetrics:
    """AP of one class, also of its small, medium and large boxes; NaN without such boxes."""

    info: ClassInfo
    num_boxes: int
    ap: float
    ap50: float
    ap_by_size: tuple[float, float, float]


@dataclass(frozen=True)
class Metrics:
    """The outcome of an evaluation.

    Attributes:
        numbers: COCO's twelve, AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl;
            0..1, NaN if the ground truth has no such box.
        per_class: in the order of the ground truth's categories.
        results: detections in COCO's results format.
        ground_truth: what they were scored against, in COCO's format.
        thresholds: those of the best F1; None if no detection is right.
        scored: by category id, which detections are right at an IoU of 0.5.
        matched: (N,) int64, for each of `results` the position in the ground truth's annotations of
            the box that it finds at an IoU of 0.5; see `match_detections`.
        precision: (10, 101), by IoU and recall, the mean over classes; NaN without boxes.
    """

    numbers: dict[str, float]
    per_class: tuple[ClassMetrics, ...]
    results: list[dict[str, Any]]
    ground_truth: dict[str, Any]
    thresholds: Thresholds | None
    scored: Mapping[int, Scored]
    matched: np.ndarray
    precision: np.ndarray

    @property
    def pooled(self) -> Scored:
        """The detections of all classes together."""
        return pool(self.scored.values())

    @property
    def defined(self) -> dict[str, float]:
        """The numbers without NaN, which JSON cannot hold."""
        return {name: value for name, value in self.numbers.items() if not math.isnan(value)}


def score(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Metrics:
    """COCO's box metrics of detections in COCO's results format, checked by `check_results`."""
    annotations = [
        # The evaluation marks an unmatched detection with 0, so no annotation may have that id.
        {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0, **entry, "id": number}
        for number, entry in enumerate(ground_truth["annotations"], start=1)
    ]
    truth = COCO({**ground_truth, "annotations": annotations})
    detections = truth.loadRes([dict(result) for result in results])
    evaluation = COCOeval_faster(truth, detections, "bbox", print_function=_say_nothing)
    evaluation.run()
    values = [float(value) for value in evaluation.stats]
    numbers = {
        name: value if value >= 0 else math.nan
        for (name, _), value in zip(NUMBERS, values, strict=True)
    }
    per_class = _score_classes(evaluation, ground_truth)
    matched = match_detections(truth, detections)
    scored = score_by_class(truth, detections, matched=matched)
    return Metrics(
        numbers,
        per_class,
        results,
        ground_truth,
        best_thresholds(scored),
        scored,
        matched,
        _mean_of_classes(evaluation.eval["precision"][..., 0, -1]),
    )


def _mean_of_classes(precision: np.ndarray) -> np.ndarray:
    """(IoU, recall) of (IoU, recall, class); classes without boxes, which have -1, do not count."""
    with_boxes = precision[:, :, np.all(precision >= 0, axis=(0, 1))]
    if not with_boxes.shape[-1]:
        return np.full(precision.shape[:2], math.nan)
    mean: np.ndarray = with_boxes.mean(axis=-1)
    return mean


def _score_classes(
    evaluation: COCOeval_faster, ground_truth: dict[str, Any]
) -> tuple[ClassMetrics, ...]:
    # (IoU, recall, category by ascending id, box size, number of detections); -1 is undefined
    by_size = evaluation.eval["precision"][..., -1]  # sizes: all, small, medium, large
    precision = by_size[..., 0]
    column = {category_id: k for k, category_id in enumerate(evaluation.params.catIds)}
    num_boxes = dict.fromkeys(column, 0)
    for annotation in ground_truth["annotations"]:
        num_boxes[annotation["category_id"]] += not annotation.get("iscrowd", 0)
    return tuple(
        ClassMetrics(
            ClassInfo(id=category["id"], name=category["name"]),
            num_boxes[category["id"]],
            _mean_defined(precision[:, :, column[category["id"]]]),
            _mean_defined(precision[0, :, column[category["id"]]]),
            (
                _mean_defined(by_size[:, :, column[category["id"]], 1]),
                _mean_defined(by_size[:, :, column[category["id"]], 2]),
                _mean_defined(by_size[:, :, column[category["id"]], 3]),
            ),
        )
        for category in ground_truth["categories"]
    )


def _mean_defined(precision: np.ndarray) -> float:
    defined = precision[precision >= 0]
    return float(defined.mean()) if defined.size else math.nan


def format_report(metrics: Metrics) -> str:
    """A table of AP and best threshold by class, and the twelve numbers, as text."""
    names = [shortened(entry.info.name) for entry in metrics.per_class]
    width = max(map(len, ["class", *names]))
    by_class = metrics.thresholds.by_class if metrics.thresholds else {}
    header = f"{'class':<{width}}  {'boxes':>6}  {'AP':>5}  {'AP50':>5}"
    lines = [f"{header}  best F1  at score  precision  recall"]
    for name, entry in zip(names, metrics.per_class, strict=True):
        values = f"{format_number(entry.ap):>5}  {format_number(entry.ap50):>5}"
        point = _point_columns(by_class.get(entry.info.id))
        lines.append(f"{name:<{width}}  {entry.num_boxes:>6}  {values}  {point}")
    overall = _point_columns(metrics.thresholds.overall if metrics.thresholds else None)
    lines.append(f"{'all':<{width}}  {sum(entry.num_boxes for entry in metrics.per_class):>6}"
                 f"  {'':5}  {'':5}  {overall}")  # fmt: skip
    lines.append("")
    for name, meaning in NUMBERS:
        lines.append(f"{name:<5}  {format_number(metrics.numbers[name]):>5}  {meaning}")
    return "\n".join(lines)


def format_point(point: OperatingPoint | None) -> list[str]:
    """Best F1, at which score, precision and recall."""
    if point is None:
        return ["n/a"] * 4
    numbers = (point.precision, point.recall)
    return [f"{point.f1:.3f}", f"{point.threshold:.2f}", *map(format_number, numbers)]


def _point_columns(point: OperatingPoint | None) -> str:
    f1, threshold, precision, recall = format_point(point)
    return f"{f1:>7}  {threshold:>8}  {precision:>9}  {recall:>6}"


def format_number(value: float) -> str:
    """Three decimals; n/a for NaN."""
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _say_nothing(*_: object) -> None: ...
