"""The convolution with its own backward pass is PyTorch's convolution."""

import pytest
import torch
import torch.nn.functional as F

from model.network.convolution import Convolution


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_results_and_gradients_are_those_of_torch(stride: int, layout: torch.memory_format) -> None:
    x = torch.randn(2, 8, 9, 14).to(memory_format=layout).requires_grad_()
    weight = torch.randn(16, 8, 3, 3, requires_grad=True)

    ours = Convolution.apply(x, weight, (stride, stride), (1, 1))
    theirs = F.conv2d(x, weight, None, stride, 1)
    gradient = torch.randn_like(theirs)
    found = torch.autograd.grad(ours, (x, weight), gradient)
    expected = torch.autograd.grad(theirs, (x, weight), gradient)

    assert torch.equal(ours, theirs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_an_image_without_gradient_gets_none() -> None:
    weight = torch.randn(4, 3, 7, 7, requires_grad=True)

    Convolution.apply(torch.randn(1, 3, 16, 16), weight, (2, 2), (3, 3)).sum().backward()

    assert weight.grad is not None
