"""Calibration of detections made by hand."""

import math

import numpy as np
import pytest

from model.evaluation.best_thresholds import Scored
from model.evaluation.calibration import calibration_error, overconfidence, score_bins


def scored(*groups: tuple[float, int, int]) -> Scored:
    """Groups of detections: their score, how many are right, and how many there are."""
    scores = np.repeat([score for score, _, _ in groups], [total for *_, total in groups])
    is_right = [number < right for _, right, total in groups for number in range(total)]
    return Scored(scores.astype(np.float32), np.array(is_right, np.bool_), 9)


def test_scores_that_mean_what_they_say_have_no_error() -> None:
    bins = score_bins(scored((0.25, 1, 4), (0.75, 3, 4)))

    assert calibration_error(bins) == 0
    assert overconfidence(bins) == 0


def test_overconfident_scores_show_by_how_much() -> None:
    bins = score_bins(scored((0.95, 5, 10), (0.55, 3, 10)))

    assert [bins[9].mean_score, bins[9].share_right] == pytest.approx([0.95, 0.5])
    assert [bins[5].mean_score, bins[5].share_right] == pytest.approx([0.55, 0.3])
    assert calibration_error(bins) == pytest.approx((0.45 + 0.25) / 2)
    assert overconfidence(bins) == pytest.approx((0.45 + 0.25) / 2)


def test_errors_in_both_directions_do_not_cancel() -> None:
    bins = score_bins(scored((0.75, 2, 4), (0.25, 2, 4)))

    assert calibration_error(bins) == pytest.approx(0.25)
    assert overconfidence(bins) == pytest.approx(0)


def test_the_many_detections_with_the_lowest_scores_do_not_count() -> None:
    bins = score_bins(scored((0.05, 0, 1000), (0.95, 0, 10)))

    assert bins[0].count == 1000
    assert calibration_error(bins) == pytest.approx(0.95)


def test_scores_of_0_and_1_are_in_the_outer_bins() -> None:
    counts = [one.count for one in score_bins(scored((0.0, 0, 2), (1.0, 1, 3)))]

    assert counts == [2, 0, 0, 0, 0, 0, 0, 0, 0, 3]


def test_no_detection_has_no_error() -> None:
    bins = score_bins(scored())

    assert math.isnan(calibration_error(bins))
    assert math.isnan(overconfidence(bins))
    assert [one.count for one in bins] == [0] * 10
