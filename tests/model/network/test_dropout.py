"""Dropout keeps the mean, follows torch's random state, and does nothing in evaluation."""

import pytest
import torch
import torch.nn.functional as F

from model.network.dropout import Dropout, dropout, dropped_relu


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_share_that_is_dropped_and_the_mean(p: float) -> None:
    x = torch.ones(401, 999, requires_grad=True)

    result = dropout(x, p, training=True)
    result.sum().backward()

    kept = result[result != 0]
    assert len(kept) / x.numel() == pytest.approx(1 - p, abs=3e-3)  # 4 standard deviations
    assert kept.unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4)
    assert x.grad is not None
    assert torch.equal(x.grad, result)
    neighbours = (result[:, 1:] != 0) & (result[:, :-1] != 0)
    assert neighbours.float().mean().item() == pytest.approx((1 - p) ** 2, abs=4e-3)


@pytest.mark.parametrize("training", [True, False])
def test_after_a_relu_it_is_the_same_with_the_same_gradient(training: bool) -> None:
    x = torch.randn(3, 5, 70, requires_grad=True)
    gradient = torch.randn_like(x)

    torch.manual_seed(3)
    ours = dropped_relu(x, 0.3, training=training)
    torch.manual_seed(3)
    theirs = dropout(F.relu(x), 0.3, training=training)

    assert torch.equal(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, x, gradient), torch.autograd.grad(theirs, x, gradient)
    )


def test_it_follows_the_random_state() -> None:
    x = torch.ones(7, 9)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    torch.manual_seed(3)
    again = dropout(x, 0.5, training=True)

    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_extreme_shares_stay_finite(p: float) -> None:
    assert torch.isfinite(dropout(torch.ones(50), p, training=True)).all()


def test_no_element_and_the_type_of_the_input() -> None:
    assert dropout(torch.ones(0, 4), 0.5, training=True).shape == (0, 4)
    assert dropout(torch.ones(2, dtype=torch.bfloat16), 0.5, training=True).dtype == torch.bfloat16


def test_evaluation_returns_its_input() -> None:
    x = torch.ones(3)

    assert Dropout(0.5).eval()(x) is x
