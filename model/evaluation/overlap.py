"""IoU of boxes given as COCO does: x, y, width, height."""

from collections.abc import Iterable, Sequence

import numpy as np


def shared_areas(box: Iterable[float], others: Sequence[Iterable[float]]) -> np.ndarray:
    """(N,) float64: the area that a box xywh shares with each of N others."""
    x, y, w, h = box
    theirs = np.array(others, dtype=np.float64).reshape(-1, 4)
    left, top = np.maximum(x, theirs[:, 0]), np.maximum(y, theirs[:, 1])
    right = np.minimum(x + w, theirs[:, 0] + theirs[:, 2])
    bottom = np.minimum(y + h, theirs[:, 1] + theirs[:, 3])
    shared: np.ndarray = (right - left).clip(0) * (bottom - top).clip(0)
    return shared


def overlaps(box: Iterable[float], others: Sequence[Iterable[float]]) -> np.ndarray:
    """(N,) float64: IoU of a box xywh with N others."""
    x, y, w, h = box
    theirs = np.array(others, dtype=np.float64).reshape(-1, 4)
    shared = shared_areas((x, y, w, h), others)
    union = w * h + theirs[:, 2] * theirs[:, 3] - shared
    found: np.ndarray = shared / np.maximum(union, np.finfo(np.float64).tiny)
    return found
