"""What is said of a threshold."""

import pytest

from bundle.thresholds import OperatingPoint


@pytest.mark.parametrize(
    ("precision", "recall", "said"),
    [
        (0.75, 0.5, "score 0.35: precision 0.750, recall 0.500, F1 0.600"),
        (0, 0, "score 0.35: precision 0.000, recall 0.000, F1 0.000"),
    ],
)
def test_a_point_is_shown_with_precision_recall_and_f1(
    precision: float, recall: float, said: str
) -> None:
    point = OperatingPoint(threshold=0.35, precision=precision, recall=recall)

    assert str(point) == said
