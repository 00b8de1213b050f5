"""Dropout, with masks that cost little on a CPU.

There, torch draws a mask number by number on one thread, which for a layer of the encoder takes
longer than its largest product. A generator of numpy fills a mask from 16 bits per element.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16  # values of 16 random bits


class Dropout(nn.Module):
    """Zeroes a share `p` of the elements in training, and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., C)."""
        return dropout(x, self.p, training=self.training)


def dropout(x: Tensor, p: float, *, training: bool) -> Tensor:
    """As `torch.nn.functional.dropout`; the mask follows from torch's random state.

    On a CPU, `p` is rounded to a multiple of 2^-16, and so is the scale: the mean is kept.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    num_kept = min(max(round((1 - p) * LEVELS), 1), LEVELS - 1)  # of the values of 16 bits
    kept = _random_bits(x.numel()) < num_kept - LEVELS // 2
    return torch.where(kept.view(x.shape), x * (LEVELS / num_kept), 0.0)


def _random_bits(count: int) -> Tensor:
    """16 random bits each as int16 (count,)."""
    seed = int(torch.randint(2**62, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))  # of 64 bits
    return torch.from_numpy(words.view(np.int16))[:count]
