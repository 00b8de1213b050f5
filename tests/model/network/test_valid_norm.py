"""Batch norm that leaves out padding: its gradients, which are written by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.backbone import BATCH_NORM_EPS
from model.network.valid_norm import valid_norm

SHAPE = (3, 2, 4, 5)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A map far from zero, a weight and a bias."""
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(SHAPE, dtype=torch.float64)
    weight, bias = torch.randn(2, SHAPE[1], dtype=torch.float64)
    return x.to(dtype).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def valid_cells() -> Tensor:
    """1 on images of different sizes, one of which is a single cell."""
    valid = torch.zeros(SHAPE[0], 1, *SHAPE[2:], dtype=torch.float64)
    for image, (height, width) in enumerate([(4, 5), (2, 3), (1, 1)]):
        valid[image, :, :height, :width] = 1
    return valid


def test_gradients_are_those_of_finite_differences() -> None:
    valid = valid_cells()

    def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return valid_norm(x, valid, weight=weight, bias=bias, eps=BATCH_NORM_EPS).result

    assert torch.autograd.gradcheck(normalised, inputs())


def test_statistics_are_those_of_the_valid_cells() -> None:
    (x, weight, bias), valid = inputs(), valid_cells()

    found = valid_norm(x, valid, weight=weight, bias=bias, eps=BATCH_NORM_EPS)

    cells = x.detach().movedim(1, -1)[valid[:, 0] > 0]  # (N, C)
    torch.testing.assert_close(found.mean, cells.mean(0))
    torch.testing.assert_close(found.variance, cells.var(0, correction=0))
    assert found.num_cells.item() == len(cells)
    expected = bias.detach()[:, None, None].expand(SHAPE)
    torch.testing.assert_close(found.result * (1 - valid), expected * (1 - valid))


def test_without_padding_gradients_are_those_of_torch() -> None:
    given = inputs()
    upstream = torch.randn(SHAPE, dtype=torch.float64)
    valid = torch.ones_like(valid_cells())

    found = valid_norm(given[0], valid, weight=given[1], bias=given[2], eps=BATCH_NORM_EPS).result
    expected = F.batch_norm(
        given[0], None, None, given[1], given[2], training=True, eps=BATCH_NORM_EPS
    )

    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, given, upstream),
        torch.autograd.grad(expected, given, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_a_half_precision_map_is_of_its_type() -> None:
    x, weight, bias = inputs(torch.bfloat16)

    valid_norm(
        x, valid_cells(), weight=weight, bias=bias, eps=BATCH_NORM_EPS
    ).result.sum().backward()

    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
