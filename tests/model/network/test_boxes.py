"""Box arithmetic as properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.data.transforms import xyxy_to_cxcywh
from model.network.boxes import cxcywh_to_xyxy, generalised_iou, inverse_sigmoid

unit = st.floats(0, 1, width=32)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda c: torch.tensor([min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])])
)


@given(boxes)
def test_formats_convert_back_and_forth(box: torch.Tensor) -> None:
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(box)), box, atol=1e-6, rtol=0)


@given(boxes, boxes)
def test_giou_is_symmetric_bounded_and_below_iou(a: torch.Tensor, b: torch.Tensor) -> None:
    iou, giou = generalised_iou(a, b)

    assert generalised_iou(b, a)[1] == giou
    assert -1 - 1e-5 <= giou <= iou + 1e-6
    assert 0 <= iou <= 1 + 1e-5


def test_giou_of_two_halves_of_a_square() -> None:
    left, right = torch.tensor([0.0, 0, 1, 2]), torch.tensor([1.0, 0, 2, 2])

    iou, giou = generalised_iou(left, right)

    assert (iou.item(), giou.item()) == (0, 0)  # the hull is exactly their union


def test_giou_of_boxes_that_do_not_touch_is_less_the_farther_they_are_apart() -> None:
    first, second = torch.tensor([0.0, 0, 2, 2]), torch.tensor([3.0, 4, 5, 6])

    iou, giou = generalised_iou(first, second)

    assert iou == 0
    assert giou.item() == pytest.approx(-(5 * 6 - 8) / (5 * 6))


def test_inverse_sigmoid_inverts_and_stays_finite_at_the_ends() -> None:
    x = torch.tensor([0.0, 1e-3, 0.3, 0.999, 1.0])

    logits = inverse_sigmoid(x)

    assert logits.isfinite().all()
    torch.testing.assert_close(logits.sigmoid()[1:4], x[1:4])
    torch.testing.assert_close(logits[4], torch.tensor(11.5129), atol=1e-3, rtol=0)
