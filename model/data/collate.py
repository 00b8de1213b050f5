"""Samples of different sizes padded and stacked into one batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundle.preprocess import pad_batch

Target = dict[str, Any]


def collate(
    samples: Sequence[tuple[np.ndarray, Target]], min_side: int = 1
) -> tuple[Tensor, Tensor, list[Target]]:
    """Pad at the bottom and right to the largest height and width of the batch.

    Args:
        samples: pairs of an image (h, w, 3) uint8 RGB and its target, from a data set.
        min_side: smallest padded height and width, in pixels.

    Returns:
        images (B, H, W, 3) uint8, padding_mask (B, H, W) bool, True on padding, and the targets
        unchanged: their boxes are relative to the un-padded image.
    """
    images, padding_mask = pad_batch([image for image, _ in samples], min_side)
    targets = [target for _, target in samples]
    return torch.from_numpy(images), torch.from_numpy(padding_mask), targets
