"""The charts of a page of results."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from model.evaluation.calibration import Bin
from model.evaluation.coco_metrics import Metrics
from model.evaluation.curves import RECALLS, precision_curves, threshold_curves
from model.evaluation.epoch_table import read_epochs
from model.pages.charts import Axis, Bar, Line, chart

_CURVE_NAMES = {"AP50": "IoU 0.50", "AP75": "IoU 0.75", "AP": "mean of IoU 0.50:0.95"}


def precision_chart(metrics: Metrics) -> Markup | None:
    """Precision over recall, the mean over classes; None without boxes."""
    curves = precision_curves(metrics)
    if not curves:
        return None
    lines = [Line(_CURVE_NAMES[name], RECALLS.tolist(), curve.tolist())
             for name, curve in curves.items()]  # fmt: skip
    title = "Precision over recall, mean of the classes"
    return chart(title, lines, x=Axis("recall"), y=Axis("precision"))


def threshold_chart(metrics: Metrics) -> Markup | None:
    """F1, precision and recall over the threshold, with the best one; None without boxes."""
    scored = metrics.pooled
    if not scored.num_boxes:
        return None
    curves = threshold_curves(scored)
    xs = curves.thresholds.tolist()
    lines = [
        Line("F1", xs, curves.f1.tolist()),
        Line("precision", xs, curves.precision.tolist()),
        Line("recall", xs, curves.recall.tolist()),
    ]
    best = metrics.thresholds.overall.threshold if metrics.thresholds else None
    mark = None if best is None else (best, f"best F1 at {best:.2f}")
    title = "F1 over the threshold, all classes together"
    return chart(title, lines, x=Axis("score from"), y=Axis(""), mark=mark)


def calibration_chart(bins: Sequence[Bin]) -> Markup:
    """The share of right detections by score, beside what scores promise."""
    bars = [Bar(one.low, one.high, one.share_right) for one in bins if one.count]
    lines = [Line("as the score says", [0.0, 1.0], [0.0, 1.0])]
    return chart(
        "Right detections by score", lines, x=Axis("score"), y=Axis("share right"), bars=bars
    )


def learning_charts(table: Path | None, epoch: float | None) -> tuple[list[Markup], str]:
    """AP and losses by epoch, and where they are from or why there are none.

    Args:
        table: a metrics.csv, which may be missing.
        epoch: shown by a mark.
    """
    if table is None or not table.is_file():
        return [], "There is no metrics.csv of the training beside what was evaluated."
    try:
        rows = read_epochs(table)
    except (OSError, ValueError) as error:
        return [], str(error)
    if not rows:
        return [], f"{table} has no epochs."
    epochs = [row["epoch"] for row in rows]
    x = Axis("epoch", min(epochs), max(epochs))
    ap = [_line(rows, "AP", "AP"), _line(rows, "AP50", "AP50")]
    loss = [
        _line(rows, "training_loss", "training loss"),
        _line(rows, "validation_loss", "validation loss"),
    ]
    highest = max((y for line in loss for y in line.ys if math.isfinite(y)), default=1.0)
    mark = None if epoch is None else (epoch, f"epoch {epoch:g}, evaluated here")
    return [
        chart("AP by epoch", ap, x=x, y=Axis("AP"), mark=mark),
        chart("Loss by epoch", loss, x=x, y=Axis("loss", 0, highest), mark=mark),
    ], f"From {table}."


def _line(rows: Sequence[Mapping[str, float]], column: str, name: str) -> Line:
    xs = [row["epoch"] for row in rows]
    return Line(name, xs, [row.get(column, math.nan) for row in rows])
