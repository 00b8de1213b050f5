"""Batch norm over the cells that are not padding, with a backward pass of few steps.

Left to autograd, each of its dozen operations on a map would have one or two more in the backward
pass: the demo trains 48 to 54 images/s on a core, and did 45 to 48.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.distributed import num_processes, process_index, sum_in_place

CELLS = (0, 2, 3)  # of a map (B, C, h, w), over which statistics are taken


class ValidNorm(NamedTuple):
    """A map (B, C, h, w) that was normalised; mean and variance (C,), of `num_cells` (1,) cells."""

    result: Tensor
    mean: Tensor
    variance: Tensor
    num_cells: Tensor


def valid_norm(x: Tensor, valid: Tensor, *, weight: Tensor, bias: Tensor, eps: float) -> ValidNorm:
    """Normalise x (B, C, h, w) by mean and variance of its valid cells, over all processes.

    Args:
        valid: (B, 1, h, w), 1 on the image and 0 on padding, where the result is the bias.
        weight, bias: (C,).

    Returns:
        All in the type of x * valid.
    """
    return ValidNorm(*_ValidNorm.apply(x, valid, weight, bias, eps))  # type: ignore[no-untyped-call]


class _ValidNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, valid: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps x (B, C, h, w) to the fields of `ValidNorm`."""
        inside = x * valid
        count = valid.sum()[None]
        own_mean = inside.sum(CELLS) / count.clamp(min=1)  # a process may have no image
        centred = inside.sub_(_of_channels(own_mean)).mul_(valid)
        mean, squares, count = _of_all(own_mean, centred.square().sum(CELLS), count)
        if num_processes() > 1:
            centred.sub_(_of_channels(mean - own_mean)).mul_(valid)
        variance = squares / count
        deviation = torch.rsqrt(variance + eps)
        ctx.save_for_backward(centred, valid, weight, deviation, count)
        result = torch.addcmul(_of_channels(bias), centred, _of_channels(weight * deviation))
        ctx.mark_non_differentiable(mean, variance, count)
        return result, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias."""
        centred, valid, weight, deviation, count = ctx.saved_tensors
        own = torch.stack([(gradient * valid).sum(CELLS), (gradient * centred).sum(CELLS)])
        # What a change of each cell changes in the statistics, over the images of all processes.
        sums = own.clone()
        sum_in_place(sums)
        scale = weight * deviation
        through_mean = -scale * sums[0] / count
        through_variance = -scale * deviation.square() * sums[1] / count
        of_x = torch.addcmul(_of_channels(through_mean), centred, _of_channels(through_variance))
        of_x.addcmul_(gradient, _of_channels(scale)).mul_(valid)
        return of_x, None, own[1] * deviation, gradient.sum(CELLS), None


def _of_all(mean: Tensor, squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), sum of squared distances from it (C,) and count (1,), over all processes.

    Each process gives its own. They are exchanged at once: on a CPU, an exchange takes a
    millisecond.
    """
    if num_processes() == 1:
        return mean, squares, count
    rows = mean.new_zeros(num_processes(), 2 * len(mean) + 1)
    rows[process_index()] = torch.cat([mean, squares, count])
    sum_in_place(rows)
    means, all_squares, counts = rows.split((len(mean), len(mean), 1), dim=1)
    total = counts.sum(0)
    mean = (means * counts).sum(0) / total
    return mean, (all_squares + counts * (means - mean).square()).sum(0), total


def _of_channels(values: Tensor) -> Tensor:
    """Values (C,) for a map (B, C, h, w)."""
    return values[:, None, None]
