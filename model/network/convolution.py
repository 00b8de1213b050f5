"""A convolution whose weight's gradient is fast on CPUs with AVX2.

For maps with channels last, oneDNN 3.12 computes that gradient 1.5 to 6 times slower there than for
maps with channels first, which it converts to a layout of its own (an AMD EPYC, 3x3 convolutions of
ResNet-50 at 480x640; the slowest have stride 2).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HAS_SLOW_KERNELS = torch.backends.cpu.get_cpu_capability() == "AVX2"


class Conv2d(nn.Conv2d):
    """The same convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C', h', w')."""
        if (
            HAS_SLOW_KERNELS
            and x.device.type == "cpu"
            and self.kernel_size != (1, 1)  # whose gradient is a product
            and self.bias is None
            and self.weight.requires_grad
            and torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        ):
            output: Tensor = Convolution.apply(  # type: ignore[no-untyped-call]
                x, self.weight, self.stride, self.padding
            )
            return output
        return super().forward(x)


class Convolution(torch.autograd.Function):
    """x (B, C, h, w) and weight (C', C, k, k), without bias -> (B, C', h', w')."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        """Maps x (B, C, h, w) to (B, C', h', w')."""
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        output: Tensor = F.conv2d(x, weight, None, stride, padding)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient, _, _ = _backward(gradient, x, weight, ctx.geometry, (True, False))
        if ctx.needs_input_grad[1]:
            gradient, x = gradient.contiguous(), x.contiguous()  # channels first
            _, weight_gradient, _ = _backward(gradient, x, weight, ctx.geometry, (False, True))
        return x_gradient, weight_gradient, None, None


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: tuple[Sequence[int], Sequence[int]],
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """PyTorch's own gradients of x and weight, those that are `wanted`."""
    stride, padding = geometry
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = (
        torch.ops.aten.convolution_backward(
            gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (*wanted, False)
        )
    )
    return gradients
