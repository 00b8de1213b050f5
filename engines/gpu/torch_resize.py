"""OpenCV's bilinear resizing in torch, on any device, with the same pixels to the bit.

OpenCV weighs the two nearest columns, then the two nearest rows, with whole numbers. No filter
smooths an image before it shrinks (docs/decisions/0002-opencv-resizes-and-pillow-decodes.md).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ONE = 2048  # a weight of 1
_TRUNCATED_BITS = 4  # of a sum over columns, before it is weighed
_WEIGHED_BITS = 16  # of each product after it
_LEFT_BITS = 2  # of the sum over rows, which is rounded


class _Taps(NamedTuple):
    """For every row or column of the result, the two of the source that it is made of."""

    first: Tensor
    second: Tensor
    first_weight: Tensor  # int32, of `ONE`
    second_weight: Tensor


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """cv2.resize with INTER_LINEAR.

    Args:
        image: (H, W, 3) uint8, of any strides.
        size: (h, w).

    Returns:
        (h, w, 3) uint8, contiguous, on the image's device.
    """
    rows = _taps(image.shape[0], size[0], device=image.device, is_kept_at_ends=True)
    columns = _taps(image.shape[1], size[1], device=image.device, is_kept_at_ends=False)
    result = torch.full((*size, 3), 1 << (_LEFT_BITS - 1), dtype=torch.int32, device=image.device)
    for place, weight in (
        (rows.first, rows.first_weight),
        (rows.second, rows.second_weight),
    ):
        chosen = image.index_select(0, place)  # (h, W, 3)
        left = chosen.index_select(1, columns.first).int() * columns.first_weight[:, None]
        right = chosen.index_select(1, columns.second).int() * columns.second_weight[:, None]
        sums = (left + right) >> _TRUNCATED_BITS  # (h, w, 3)
        result += (sums * weight[:, None, None]) >> _WEIGHED_BITS
    return (result >> _LEFT_BITS).to(torch.uint8)


def _taps(length: int, wanted: int, *, device: torch.device, is_kept_at_ends: bool) -> _Taps:
    """Where the pixels of a row or column lie in the source.

    Args:
        is_kept_at_ends: a weight beyond the first or last pixel falls on that pixel, beside the
            other one, and is not moved to it: two roundings instead of one.
    """
    scale = 1 / (wanted / length)
    positions = ((np.arange(wanted) + 0.5) * scale - 0.5).astype(np.float32)
    floors = np.floor(positions)
    second = positions - floors
    if not is_kept_at_ends:
        second[(floors < 0) | (floors >= length - 1)] = 0
    weights = (np.rint(part * np.float32(ONE)).astype(np.int32) for part in (1 - second, second))
    places = (np.clip(floors.astype(np.int64) + step, 0, length - 1) for step in (0, 1))
    return _Taps(*(torch.from_numpy(part).to(device) for part in (*places, *weights)))
