"""Dropout, with masks that cost little on a CPU.

There, torch draws a mask number by number on one thread, which for a layer of the encoder takes
longer than its largest product. A generator of numpy fills a mask from 16 bits per element.
"""

from collections.abc import Sequence
from typing import Any

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
    kept, scale = _draw(x.shape, p)
    return (x * kept).mul_(scale)


def dropped_relu(x: Tensor, p: float, *, training: bool) -> Tensor:
    """`dropout` of the ReLU of x; on a CPU, no mask is kept for the backward pass."""
    if not training or p == 0 or x.device.type != "cpu":
        return dropout(F.relu(x), p, training=training)
    kept, scale = _draw(x.shape, p)
    dropped: Tensor = _DroppedRelu.apply(x, kept, scale)  # type: ignore[no-untyped-call]
    return dropped


class _DroppedRelu(torch.autograd.Function):
    """The gradient passes where the result is positive: neither ReLU nor dropout made it zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        """Maps (..., C) to (..., C); kept has the same shape."""
        result = F.relu(x).mul_(kept).mul_(scale)
        ctx.save_for_backward(result)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x."""
        (gradient,), (result,) = gradients, ctx.saved_tensors
        passed = torch.ops.aten.threshold_backward(gradient, result, 0)
        return passed.mul_(ctx.scale), None, None


def _draw(shape: Sequence[int], p: float) -> tuple[Tensor, float]:
    """1 where an element is kept, else 0, as int8 of this shape; and what those kept are scaled by.

    As int8, since torch multiplies by bool more slowly; compared in numpy for the same reason.
    """
    num_kept = min(max(round((1 - p) * LEVELS), 1), LEVELS - 1)  # of the values of 16 bits
    count = torch.Size(shape).numel()
    seed = int(torch.randint(2**62, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))  # of 64 bits
    is_kept = words.view(np.int16)[:count] < num_kept - LEVELS // 2
    return torch.from_numpy(is_kept.view(np.int8)).view(shape), LEVELS / num_kept
