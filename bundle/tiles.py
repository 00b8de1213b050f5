"""Cuts large images into overlapping tiles, to find small objects, and merges the detections.

The model scales every image to its own size, and misses objects that become a few pixels. In a
tile they stay larger. The whole image is run too, for objects larger than a tile.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bundle.device_image import Decoded
from bundle.duplicates import areas, shared_areas
from bundle.postprocess import ImageOutput

MIN_TILE_PX: Final = 64
OVERLAP: Final = 0.25  # of a tile's side: anything smaller is complete in some tile
SAME: Final = 0.5  # two boxes of a class that overlap by more are one object
# A box that ends at the edge of its tile may be half an object: it ranks as if its score were half.
EDGE: Final = 0.02  # of the tile's side: how near the edge counts, as boxes are not exact
CUT_FACTOR: Final = 0.5

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Window(NamedTuple):
    """A part of an image, in pixels; bottom and right are the first row and column outside it."""

    top: int
    left: int
    bottom: int
    right: int

    def of(self, image: Decoded) -> Decoded:
        """This part of an image (H, W, 3); of an array, a view."""
        return image[self.top : self.bottom, self.left : self.right]


def cut(size: tuple[int, int], tile_px: int | None) -> list[Window]:
    """The whole image, followed by its tiles row by row if it is larger than a tile.

    Args:
        size: (height, width) of the image.
        tile_px: side of a tile; None for the whole image only.
    """
    height, width = size
    whole = Window(0, 0, height, width)
    if tile_px is None or max(size) <= tile_px:
        return [whole]
    return [whole] + [
        Window(top, left, min(top + tile_px, height), min(left + tile_px, width))
        for top in _starts(height, tile_px)
        for left in _starts(width, tile_px)
    ]


def num_windows(size: tuple[int, int], tile_px: int | None) -> int:
    """How many windows `cut` would make, at once even if it is millions."""
    height, width = size
    if tile_px is None or max(size) <= tile_px:
        return 1
    return 1 + (_num_steps(height, tile_px) + 1) * (_num_steps(width, tile_px) + 1)


def _starts(length: int, tile_px: int) -> list[int]:
    """Where tiles begin: evenly spaced, so that neighbours overlap by at least `OVERLAP`."""
    num_steps = _num_steps(length, tile_px)
    room = length - tile_px
    return [step * room // num_steps for step in range(num_steps + 1)] if num_steps else [0]


def _num_steps(length: int, tile_px: int) -> int:
    return -(-max(0, length - tile_px) // int(tile_px * (1 - OVERLAP)))


def merge(windows: Sequence[Window], outputs: Sequence[ImageOutput]) -> ImageOutput:
    """Merge the outputs for the parts of an image into one.

    This is non-maximum suppression by class, but only between boxes of different parts: what the
    model finds twice in one part stays. A box cut by its tile is dropped if a better one covers
    half of it. Weighted fusion would average the box of an object with those of its halves.

    Args:
        windows: from `cut`, the whole image first.
        outputs: one per window.

    Returns:
        Any number of detections, best first; boxes normalised by the whole image.
    """
    if len(windows) == 1:
        return outputs[0]
    size = windows[0]
    scores = np.concatenate([output.scores for output in outputs])
    labels = np.concatenate([output.labels for output in outputs])
    boxes_px, is_cut, parts = _placed(windows, outputs)
    rank = scores * np.where(is_cut, CUT_FACTOR, 1.0)
    kept: list[int] = []
    for label in np.unique(labels):
        left = np.flatnonzero(labels == label)
        left = left[np.argsort(-rank[left], kind="stable")]
        while len(left):
            best, left = left[0], left[1:]
            kept.append(int(best))
            covered = _overlap(boxes_px[best], boxes_px[left], is_cut[left]) > SAME
            left = left[~(covered & (parts[left] != parts[best]))]
    order = np.array(kept, np.intp)[np.argsort(-scores[kept], kind="stable")]
    boxes = boxes_px[order] / (size.right, size.bottom, size.right, size.bottom)
    return ImageOutput(scores[order], labels[order], boxes.astype(np.float32))


def _placed(
    windows: Sequence[Window], outputs: Sequence[ImageOutput]
) -> tuple[Float64Array, BoolArray, npt.NDArray[np.intp]]:
    """Boxes (N, 4) xyxy in pixels of the image, whether each is cut, and its part's number."""
    whole = windows[0]
    boxes_px, is_cut, parts = [], [], []
    for number, (window, output) in enumerate(zip(windows, outputs, strict=True)):
        height, width = window.bottom - window.top, window.right - window.left
        corner = np.array([window.left, window.top])
        sides = np.array([width, height])
        low, high = np.split(output.boxes.astype(np.float64), 2, axis=1)
        at_low = (low < EDGE) & (corner > 0)
        at_high = (high > 1 - EDGE) & (corner + sides < (whole.right, whole.bottom))
        boxes_px.append(np.concatenate([low * sides + corner, high * sides + corner], axis=1))
        is_cut.append((at_low | at_high).any(axis=1))
        parts.append(np.full(len(output.scores), number))
    return np.concatenate(boxes_px), np.concatenate(is_cut), np.concatenate(parts)


def _overlap(box: Float64Array, others: Float64Array, is_cut: BoolArray) -> Float64Array:
    """Overlap of one box (4,) with others (N, 4) -> (N,): IoU; for cut boxes, the covered share."""
    common = shared_areas(box, others)
    own = areas(others)
    total = np.where(is_cut, own, areas(box[None]) + own - common)
    share: Float64Array = common / np.maximum(total, np.finfo(np.float64).tiny)
    return share
