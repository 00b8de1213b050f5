"""Box arithmetic on tensors whose last axis holds four coordinates."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners (..., 4) of boxes given by centre and size (..., 4)."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of probabilities in [0, 1] of any shape, each side floored at eps: finite at 0 and 1.

    A difference of logarithms rather than the logarithm of a quotient, which overflows in
    half precision (1 / 1e-5 > 65504).
    """
    return torch.log(x.clamp(min=eps)) - torch.log((1 - x).clamp(min=eps))


def generalised_iou(a: Tensor, b: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of xyxy boxes; shapes (..., 4) broadcast against each other.

    Union and enclosing area are floored at eps, so empty boxes give 0 rather than NaN.

    Source: Rezatofighi et al., arXiv:1902.09630; floors as in mmdetection.
    """
    # By coordinate, so that the large tensors, of a number per pair of boxes, are contiguous.
    left_a, top_a, right_a, bottom_a = a.unbind(-1)
    left_b, top_b, right_b, bottom_b = b.unbind(-1)
    area_a = (right_a - left_a) * (bottom_a - top_a)
    area_b = (right_b - left_b) * (bottom_b - top_b)
    width = (torch.minimum(right_a, right_b) - torch.maximum(left_a, left_b)).clamp(min=0)
    height = (torch.minimum(bottom_a, bottom_b) - torch.maximum(top_a, top_b)).clamp(min=0)
    intersection = width * height
    union = (area_a + area_b - intersection).clamp(min=eps)
    iou = intersection / union
    hull_width = torch.maximum(right_a, right_b) - torch.minimum(left_a, left_b)
    hull_height = torch.maximum(bottom_a, bottom_b) - torch.minimum(top_a, top_b)
    hull_area = (hull_width * hull_height).clamp(min=eps)
    return iou, iou - (hull_area - union) / hull_area
