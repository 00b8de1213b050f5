import numpy as np

from bundle.comparison import match
from bundle.postprocess import ImageOutput

ONE, OTHER = [0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.9, 0.8]


def output(scores: list[float], labels: list[int], boxes: list[list[float]]) -> ImageOutput:
    return ImageOutput(np.array(scores, np.float32), np.array(labels), np.array(boxes, np.float32))


def test_neighbours_of_equal_score_are_found_in_any_order() -> None:
    expected = output([0.9, 0.5, 0.5, 0.1], [0, 1, 2, 0], [ONE, ONE, OTHER, ONE])
    found = output([0.9, 0.5, 0.5, 0.1], [0, 2, 1, 0], [ONE, OTHER, ONE, ONE])

    assert match(expected, found, slack=1e-6).counterparts.tolist() == [0, 2, 1, 3]


def test_a_detection_is_the_counterpart_of_one_other_at_most() -> None:
    expected = output([0.9, 0.9, 0.1], [0, 0, 0], [ONE, ONE, ONE])
    found = output([0.9, 0.9, 0.1], [0, 1, 0], [ONE, ONE, ONE])

    assert match(expected, found, slack=1e-6).counterparts.tolist() == [0, -1, 2]


def test_a_detection_of_another_score_is_not_a_counterpart() -> None:
    expected = output([0.9, 0.5, 0.1], [0, 1, 2], [ONE, ONE, ONE])
    found = output([0.9, 0.5, 0.1], [0, 2, 1], [ONE, ONE, ONE])

    assert match(expected, found, slack=1e-6).counterparts.tolist() == [0, -1, -1]


def test_a_detection_displaced_by_an_equal_score_is_reported() -> None:
    expected = output([0.9, 0.5, 0.5], [0, 1, 1], [ONE, ONE, OTHER])
    found = output([0.9, 0.5, 0.5], [0, 1, 2], [ONE, ONE, OTHER])

    assert match(expected, found, slack=1e-6).is_at_cut.tolist() == [False, False, True]


def test_a_list_that_is_mostly_another_one_is_not_an_exception() -> None:
    expected = output([0.5, 0.5, 0.5], [0, 1, 1], [ONE, ONE, OTHER])
    found = output([0.5, 0.5, 0.5], [0, 2, 2], [ONE, ONE, OTHER])

    assert match(expected, found, slack=1e-6).is_at_cut.tolist() == [False, False, False]
