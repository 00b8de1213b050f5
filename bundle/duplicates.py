"""Non-maximum suppression: of boxes of one class that overlap much, keep only the best.

The model is trained to find every object once, but with little training it finds some twice.
"""

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.floating]


def without_duplicates(
    boxes: Boxes, labels: npt.NDArray[np.int64], *, iou: float
) -> npt.NDArray[np.intp]:
    """Positions of the boxes to keep, ascending.

    Args:
        boxes: (N, 4) xyxy, best first.
        labels: (N,) int64; boxes of different labels are never duplicates.
        iou: a box is dropped if it overlaps a kept one by more than this.
    """
    kept: list[int] = []
    for label in np.unique(labels):
        left = np.flatnonzero(labels == label)
        while len(left):
            best, left = left[0], left[1:]
            kept.append(int(best))
            left = left[_iou(boxes[best], boxes[left]) <= iou]
    return np.sort(np.array(kept, np.intp))


def _iou(box: Boxes, others: Boxes) -> Boxes:
    """IoU of one box (4,) with others (N, 4) -> (N,); 0 for boxes without area."""
    shared = shared_areas(box, others)
    both = areas(box[None]) + areas(others) - shared
    iou: Boxes = np.divide(shared, both, out=np.zeros_like(shared), where=both > 0)
    return iou


def areas(boxes: Boxes) -> Boxes:
    """Areas of boxes (N, 4) xyxy -> (N,)."""
    product: Boxes = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return product


def shared_areas(box: Boxes, others: Boxes) -> Boxes:
    """Areas that one box (4,) has in common with others (N, 4) -> (N,); both xyxy."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    product: Boxes = np.maximum(sides, 0).prod(axis=1)
    return product
