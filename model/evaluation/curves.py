"""The curves of an evaluation: precision over recall, and F1 over the threshold."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.evaluation.best_thresholds import CANDIDATES, Scored, count_from
from model.evaluation.coco_metrics import Metrics

RECALLS = np.linspace(0, 1, 101)  # COCO's
Float64Array = npt.NDArray[np.float64]


def precision_curves(metrics: Metrics) -> dict[str, Float64Array]:
    """Name -> (101,) precision at `RECALLS`, the mean over classes; empty without boxes.

    The mean of a curve is the AP of its name.
    """
    precision = metrics.precision
    if np.isnan(precision).any():
        return {}
    return {"AP50": precision[0], "AP75": precision[5], "AP": precision.mean(axis=0)}


class ThresholdCurves(NamedTuple):
    """(99,) each: what the detections from a threshold on reach; NaN where it is undefined."""

    thresholds: Float64Array
    precision: Float64Array
    recall: Float64Array
    f1: Float64Array


def threshold_curves(scored: Scored) -> ThresholdCurves:
    """Precision, recall and F1 at an IoU of 0.5, from threshold 0.01 to 0.99."""
    num_right, num_shown = count_from(scored, CANDIDATES)
    with np.errstate(invalid="ignore"):
        return ThresholdCurves(
            CANDIDATES.astype(np.float64),
            num_right / num_shown,
            num_right / np.float64(scored.num_boxes),
            2 * num_right / (num_shown + scored.num_boxes),
        )
