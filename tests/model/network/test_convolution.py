"""The convolution with its own backward pass is PyTorch's convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.convolution import Conv2d, Convolution


@pytest.mark.parametrize("bias", [None, torch.randn(16, requires_grad=True)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_results_and_gradients_are_those_of_torch(
    stride: int, layout: torch.memory_format, bias: Tensor | None
) -> None:
    x = torch.randn(2, 8, 9, 14).to(memory_format=layout).requires_grad_()
    weight = torch.randn(16, 8, 3, 3, requires_grad=True)
    trained = [t for t in (x, weight, bias) if t is not None]

    ours = Convolution.apply(x, weight, bias, (stride, stride), (1, 1))
    theirs = F.conv2d(x, weight, bias, stride, 1)
    gradient = torch.randn_like(theirs)
    found = torch.autograd.grad(ours, trained, gradient)
    expected = torch.autograd.grad(theirs, trained, gradient)

    assert torch.equal(ours, theirs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("size", "geometry"),
    [
        pytest.param((1, 500, 4, 5), (500, 3, 1), id="a large weight"),
        pytest.param((1, 128, 45, 47), (512, 1, 1), id="1x1"),
        pytest.param((1, 512, 31, 33), (1024, 1, 2), id="1x1 with a stride"),
    ],
)
def test_every_way_gives_the_same_and_keeps_the_layout(
    size: tuple[int, ...], geometry: tuple[int, int, int], layout: torch.memory_format
) -> None:
    channels, kernel, stride = geometry
    convolution = Conv2d(size[1], channels, kernel, stride, kernel // 2, bias=False)
    x = torch.randn(size).to(memory_format=layout).requires_grad_()

    ours, theirs = convolution(x), nn.Conv2d.forward(convolution, x)
    gradient = torch.randn_like(theirs)
    found = torch.autograd.grad(ours, (x, convolution.weight), gradient)
    expected = torch.autograd.grad(theirs, (x, convolution.weight), gradient)

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert ours.is_contiguous(memory_format=layout) or kernel == 1
    assert found[0].is_contiguous(memory_format=layout) or kernel == 1


def test_an_image_without_gradient_gets_none() -> None:
    weight = torch.randn(4, 3, 7, 7, requires_grad=True)

    Convolution.apply(torch.randn(1, 3, 16, 16), weight, None, (2, 2), (3, 3)).sum().backward()

    assert weight.grad is not None
