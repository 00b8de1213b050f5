"""A convolution that is fast in training on a CPU, for maps with channels last in memory.

The kernels of oneDNN 3.12 are chosen for each product, by measurements on an AMD EPYC with AVX-512
and with AVX2 (ResNet-50 at 320x416 and 480x640):

- The gradient of a weight takes 1 to 6 times as long with channels last as with channels first.
- The weight is converted to another layout in every call; if it is large, as in the last stage,
  that takes less time for maps with channels first.
- A 1x1 convolution is a product of matrices.

The size of the batch decides nothing, or an image would have other roundings alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.linear import LEAST, large_linear, trains_on_cpu

LARGE_WEIGHT = 1 << 21  # elements: 512 x 512 x 3 x 3 is more, 256 x 256 x 3 x 3 less


class Conv2d(nn.Conv2d):
    """The same convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C', h', w')."""
        if not trains_on_cpu(x, self.weight):
            return super().forward(x)
        if self.kernel_size != (1, 1):
            output: Tensor = Convolution.apply(  # type: ignore[no-untyped-call]
                x, self.weight, self.bias, self.stride, self.padding
            )
            return output
        across, down = self.stride
        if x.shape[1:].numel() * self.out_channels < LEAST * across * down:
            return super().forward(x)
        # An average of one pixel; the gradient of a slice would have channels first.
        pixels = F.avg_pool2d(x, 1, self.stride) if across * down > 1 else x
        rows = pixels.permute(0, 2, 3, 1)  # (B, h', w', C)
        return large_linear(rows, self.weight.flatten(1), bias=self.bias).permute(0, 3, 1, 2)


class Convolution(torch.autograd.Function):
    """x (B, C, h, w), weight (C', C, k, k) and bias (C') or None -> (B, C', h', w')."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
    ) -> Tensor:
        """Maps (B, C, h, w) to (B, C', h', w')."""
        ctx.is_weight_large = weight.numel() > LARGE_WEIGHT
        ctx.geometry = stride, padding
        source = x.contiguous() if ctx.is_weight_large else x
        ctx.save_for_backward(source, weight)
        return _laid_out_as(x, F.conv2d(source, weight, bias, stride, padding))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of those that need one."""
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        x_gradient = weight_gradient = None
        if needs_x:
            source = gradient.contiguous() if ctx.is_weight_large else gradient
            x_gradient, _, _ = _backward(source, x, weight, ctx.geometry, (True, False))
            x_gradient = _laid_out_as(gradient, x_gradient)
        if needs_weight:
            first, x = gradient.contiguous(), x.contiguous()  # channels first
            _, weight_gradient, _ = _backward(first, x, weight, ctx.geometry, (False, True))
        bias_gradient = gradient.sum((0, 2, 3)) if needs_bias else None
        return x_gradient, weight_gradient, bias_gradient, None, None


def _laid_out_as(example: Tensor, x: Tensor) -> Tensor:
    """x (B, C, h, w), with channels last in memory if those of the example are."""
    is_last = example.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last) if is_last else x


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: tuple[Sequence[int], Sequence[int]],
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's own gradients of x and weight, those that are `wanted`."""
    stride, padding = geometry
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (*wanted, False)
    )
    return gradients
