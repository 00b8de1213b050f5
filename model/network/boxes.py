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
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(
        min=0
    )
    intersection = overlap[..., 0] * overlap[..., 1]
    union = (area_a + area_b - intersection).clamp(min=eps)
    iou = intersection / union
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(
        min=0
    )
    hull_area = (hull[..., 0] * hull[..., 1]).clamp(min=eps)
    return iou, iou - (hull_area - union) / hull_area
