"""The linear layer with its own products is PyTorch's linear layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.linear import LEAST, Linear, LinearFunction


@pytest.mark.parametrize("bias", [None, torch.randn(6, requires_grad=True)])
def test_results_and_gradients_are_those_of_torch(bias: Tensor | None) -> None:
    x = torch.randn(2, 7, 5).transpose(0, 1).requires_grad_()
    weight = torch.randn(6, 5, requires_grad=True)
    trained = [t for t in (x, weight, bias) if t is not None]

    ours, theirs = LinearFunction.apply(x, weight, bias), F.linear(x, weight, bias)
    gradient = torch.randn(6, 2, 7).permute(2, 1, 0)[:, :2]
    found = torch.autograd.grad(ours, trained, gradient)
    expected = torch.autograd.grad(theirs, trained, gradient)

    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, expected)


def test_only_large_layers_in_training_use_it() -> None:
    layer, rows = Linear(512, 512), LEAST >> 18

    large, small = layer(torch.randn(1, rows, 512)), layer(torch.randn(2, rows - 1, 512))
    with torch.no_grad():
        evaluated = layer(torch.randn(1, rows, 512))

    assert "LinearFunction" in large.grad_fn.name()
    assert "LinearFunction" not in small.grad_fn.name()
    assert evaluated.grad_fn is None


def test_other_types_and_autocast_are_left_to_torch() -> None:
    layer, x = Linear(512, 512), torch.randn(1, LEAST >> 18, 512)

    wide = Linear(512, 512, dtype=torch.float64)(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)

    assert wide.dtype is torch.float64
    assert half.dtype is torch.bfloat16


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        LinearFunction.apply(x, torch.randn(2, 4), None).square().sum(), x, create_graph=True
    )

    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
