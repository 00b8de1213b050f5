"""Linear layers whose large products are fast in training on a CPU.

There, torch computes float32 products with MKL. For two of the three that a layer needs in
training, oneDNN takes 0.75 to 0.9 of the time (2765 tokens and 256 to 1024 channels, AMD EPYC, with
AVX-512 as with AVX2); for the gradient of the weight, it takes longer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Multiplications for an image, below which a function in Python costs more than it gains: 300
# queries times 256 x 1024 are fewer, 2080 pixels times 128 x 512 are more.
LEAST = 1 << 27


class Linear(nn.Linear):
    """The same layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, ..., in) to (B, ..., out)."""
        if trains_on_cpu(x, self.weight) and x.shape[1:].numel() * self.out_features >= LEAST:
            return large_linear(x, self.weight, bias=self.bias)
        return super().forward(x)


def trains_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer gets a gradient for its weight from a CPU, in full precision."""
    return (
        x.device.type == "cpu"
        and weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def large_linear(x: Tensor, weight: Tensor, *, bias: Tensor | None) -> Tensor:
    """As `torch.nn.functional.linear`: x (..., in), weight (out, in), bias (out) -> (..., out)."""
    if x.dtype is not torch.float32 or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    output: Tensor = LinearFunction.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return output


class LinearFunction(torch.autograd.Function):
    """x (..., in), weight (out, in) and bias (out) or None, in float32 on a CPU -> (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Maps (..., in) to (..., out)."""
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of those that need one."""
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (n, out)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t(), None) if needs_x else None,
            rows.t() @ x.flatten(0, -2) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) times the transpose of weight (out, in), plus bias, by oneDNN."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output
