"""The results of an evaluation as one page: numbers, curves, confusions, and the worst images."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundle.atomic import write_atomically
from bundle.thresholds import DEFAULT_THRESHOLD
from model.data.data_report import DATA_PAGE
from model.data.evaluation_data import EvaluationData
from model.evaluation.best_thresholds import IOU, MIN_BOXES
from model.evaluation.calibration import MIN_SCORE, calibration_error, overconfidence, score_bins
from model.evaluation.coco_metrics import (
    NUMBERS,
    ClassMetrics,
    Metrics,
    format_number,
    format_point,
)
from model.evaluation.errors import Confusion, find_errors, lowest_scores
from model.evaluation.result_charts import (
    calibration_chart,
    learning_charts,
    precision_chart,
    threshold_chart,
)
from model.evaluation.worst_images import NUM_PICTURES, draw_worst
from model.pages.page import render

REPORT_PAGE = "report.html"
MAX_CLASSES = 30  # of the confusion matrix
NUM_CONFUSIONS = 20
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What was evaluated.

    Attributes:
        name: the checkpoint, bundle or file of detections.
        facts: more about it, in rows for a table.
        epochs: the metrics.csv of its training, which may be missing.
        epoch: the one it is from.
        padding: AP of images alone beside that of padded ones, or how to measure it.
        notes: what may be wrong.
    """

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    epochs: Path | None = None
    epoch: float | None = None
    padding: str = ""
    notes: Sequence[str] = ()


def facts_of(origin: Mapping[str, Any], prefix: str = "training") -> Iterator[tuple[str, str]]:
    """Rows of a provenance: one for each plain value, those of its mappings included."""
    for name, value in origin.items():
        if isinstance(value, Mapping):
            yield from facts_of(value, f"{prefix}, {name}")
        elif isinstance(value, str | int | float):
            yield f"{prefix}, {name}", str(value)


def write_report(
    metrics: Metrics, dataset: EvaluationData, *, subject: Subject, path: Path
) -> None:
    """Write the page, and log where it is, its size and the time it took.

    Raises:
        OSError: it cannot be written; its previous version is intact.
    """
    start = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render("results.html", _values(metrics, dataset, subject, path))
    write_atomically(path, page)
    log.info(
        "%s shows the results: %.1f MB, took %.1f s",
        *(path, len(page) / 1e6, time.perf_counter() - start),
    )


def report_after_training(
    metrics: Metrics, dataset: EvaluationData, *, subject: Subject, path: Path
) -> None:
    """Write the page of a run that is over; if that fails, one line says so."""
    try:
        write_report(metrics, dataset, subject=subject, path=path)
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no memory is left"
        log.warning("%s was not written: %s", path, reason)


def _values(
    metrics: Metrics, dataset: EvaluationData, subject: Subject, path: Path
) -> dict[str, Any]:
    """What the template shows."""
    lowest = lowest_scores(metrics.thresholds, metrics.ground_truth)
    errors = find_errors(metrics, lowest)
    confusion = Confusion.of(errors, metrics.ground_truth)
    learning, learning_note = learning_charts(subject.epochs, subject.epoch)
    return {
        "subject": subject,
        "facts": {**subject.facts, **_facts(metrics)},
        "numbers": [(name, format_number(metrics.numbers[name]), meaning, _share(metrics, name))
                    for name, meaning in NUMBERS],
        "classes": _class_rows(metrics),
        "threshold": metrics.thresholds.overall if metrics.thresholds else None,
        "default_threshold": DEFAULT_THRESHOLD,
        "min_boxes": MIN_BOXES,
        "iou": IOU,
        "curves": list(filter(None, (precision_chart(metrics), threshold_chart(metrics)))),
        "confusion": _confusion(confusion.limited(MAX_CLASSES)),
        "confusions": confusion.most_common(NUM_CONFUSIONS),
        "calibration": _calibration(metrics),
        "pictures": draw_worst(errors, dataset, ground_truth=metrics.ground_truth),
        "num_with_errors": sum(image.num_errors > 0 for image in errors),
        "num_images": len(errors),
        "num_pictures": NUM_PICTURES,
        "learning": learning,
        "learning_note": learning_note,
        "data_page": DATA_PAGE if (path.parent / DATA_PAGE).is_file() else None,
    }  # fmt: skip


def _facts(metrics: Metrics) -> dict[str, str]:
    truth = metrics.ground_truth
    crowds = sum(bool(entry.get("iscrowd", 0)) for entry in truth["annotations"])
    return {
        "images": f"{len(truth['images'])}",
        "boxes": f"{len(truth['annotations']) - crowds}, and {crowds} crowds",
        "classes": f"{len(truth['categories'])}",
        "detections": f"{len(metrics.results)}",
        "evaluated": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _share(metrics: Metrics, name: str) -> float:
    """0..1, the length of a number's bar."""
    value = metrics.numbers[name]
    return 0.0 if math.isnan(value) else value


def _class_rows(metrics: Metrics) -> list[dict[str, Any]]:
    """A row for each class, the lowest AP first; those without boxes at the end."""
    points = metrics.thresholds.by_class if metrics.thresholds else {}

    def row(entry: ClassMetrics) -> dict[str, Any]:
        aps = (entry.ap, entry.ap50, *entry.ap_by_size)
        return {
            "name": entry.info.name,
            "num_boxes": entry.num_boxes,
            "aps": [format_number(ap) for ap in aps],
            "point": format_point(points.get(entry.info.id)),
        }

    known = [entry for entry in metrics.per_class if not math.isnan(entry.ap)]
    unknown = [entry for entry in metrics.per_class if math.isnan(entry.ap)]
    return [row(entry) for entry in [*sorted(known, key=lambda entry: entry.ap), *unknown]]


def _confusion(confusion: Confusion) -> dict[str, Any]:
    """Rows of cells with their count and share of the row."""
    rows = []
    for number, name in enumerate((*confusion.names, None)):
        counts = confusion.counts[number].tolist()
        total = sum(counts) or 1
        cells = [{"count": count, "share": count / total, "is_right": number == column}
                 for column, count in enumerate(counts)]  # fmt: skip
        rows.append({"name": name, "cells": cells})
    return {"names": confusion.names, "rows": rows}


def _calibration(metrics: Metrics) -> dict[str, Any]:
    bins = score_bins(metrics.pooled)
    return {
        "chart": calibration_chart(bins),
        "error": format_number(calibration_error(bins)),
        "overconfidence": overconfidence(bins),
        "min_score": MIN_SCORE,
        "bins": [(f"{one.low:.1f} to {one.high:.1f}", one.count, format_number(one.mean_score),
                  format_number(one.share_right)) for one in bins],
    }  # fmt: skip
