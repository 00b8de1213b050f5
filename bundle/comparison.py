"""How far two outputs for one image are apart, where equal scores may come in any order."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bundle.postprocess import ImageOutput

ANOTHER_BOX = 0.01  # farther apart than this, two boxes are not the same one computed twice


class Match(NamedTuple):
    """Which detection of another output each of the N expected ones is.

    counterparts (N,) int64: positions in the other output, -1 where there is none. is_at_cut (N,)
    bool: those without one because others of the same score took their place at the end of the
    list. There are none where it would be more than half of the list, which is another list then.
    """

    counterparts: npt.NDArray[np.int64]
    is_at_cut: npt.NDArray[np.bool_]


def match(expected: ImageOutput, found: ImageOutput, *, slack: float) -> Match:
    """Pair every expected detection with the nearest free one of its label and, nearly, score.

    Args:
        slack: scores that are closer than this may have changed places.
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
