"""Pairs the detections of two outputs for one image; equal scores may be in any order."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bundle.postprocess import ImageOutput

ANOTHER_BOX = 0.01  # two boxes farther apart than this are not one box computed twice


class Match(NamedTuple):
    """The counterpart of each of N expected detections in another output.

    counterparts (N,) int64: positions in the other output, -1 for none. is_at_cut (N,) bool: the
    detections displaced from the end of the list by others of the same score. If more than half of
    the list seems displaced, the lists really differ and none is marked.
    """

    counterparts: npt.NDArray[np.int64]
    is_at_cut: npt.NDArray[np.bool_]


def match(expected: ImageOutput, found: ImageOutput, *, slack: float) -> Match:
    """Pair each expected detection with the nearest free one of its label and nearly its score.

    Args:
        slack: detections whose scores differ by less may be in either order.
    """
    is_free = np.ones(len(found.scores), np.bool_)
    counterparts = np.full(len(expected.scores), -1)
    is_at_cut = np.zeros(len(expected.scores), np.bool_)
    for place, (score, label, box) in enumerate(zip(*expected, strict=True)):
        is_candidate = is_free & (found.labels == label) & (np.abs(found.scores - score) <= slack)
        candidates = np.flatnonzero(is_candidate)
        distances = np.abs(found.boxes[candidates] - box).max(axis=1)
        is_far = distances.min(initial=1.0) > ANOTHER_BOX
        if is_far and score <= expected.scores[-1] + slack:
            is_at_cut[place] = True
        elif len(candidates):
            nearest = candidates[distances.argmin()]
            counterparts[place] = nearest
            is_free[nearest] = False
    return Match(counterparts, is_at_cut & (2 * is_at_cut.sum() <= len(is_at_cut)))
