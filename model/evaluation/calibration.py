"""Whether scores mean what they say: how many detections of each score are right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.evaluation.best_thresholds import Scored

NUM_BINS = 10
MIN_SCORE = 0.1  # most detections score less, and would outweigh all others


@dataclass(frozen=True)
class Bin:
    """The detections with scores from `low` up to `high`; means are NaN where there is none."""

    low: float
    high: float
    count: int
    mean_score: float
    share_right: float


def score_bins(scored: Scored) -> list[Bin]:
    """Ten bins of equal width from 0 to 1."""
    place = np.minimum((scored.scores.astype(np.float64) * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for number in range(NUM_BINS):
        inside = place == number
        count = int(inside.sum())
        bins.append(
            Bin(
                number / NUM_BINS,
                (number + 1) / NUM_BINS,
                count,
                float(scored.scores[inside].mean(dtype=np.float64)) if count else math.nan,
                float(scored.is_right[inside].mean()) if count else math.nan,
            )
        )
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: by how much mean score and share of right ones differ.

    The mean over the detections in the bins from MIN_SCORE on; NaN if there are none.
    """
    counted = _counted(bins)
    total = sum(one.count for one in counted)
    if not total:
        return math.nan
    return sum(one.count * abs(one.mean_score - one.share_right) for one in counted) / total


def overconfidence(bins: Sequence[Bin]) -> float:
    """Mean score less share of right ones, from MIN_SCORE on; negative if scores are too low."""
    counted = _counted(bins)
    total = sum(one.count for one in counted)
    if not total:
        return math.nan
    return sum(one.count * (one.mean_score - one.share_right) for one in counted) / total


def _counted(bins: Sequence[Bin]) -> list[Bin]:
    return [one for one in bins if one.count and one.low >= MIN_SCORE]
