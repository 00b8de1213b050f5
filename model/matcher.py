"""Hungarian matching of predictions to ground truth, one image and one layer at a time."""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from model.boxes import cxcywh_to_xyxy, generalised_iou
from model.config import LossConfig

IMPOSSIBLE = 1e6  # cost of a pair whose cost is not finite


def size_scale(size: Tensor) -> Tensor:
    """(w, h, w, h) float32 from a (height, width) pair: normalised boxes times this are pixels."""
    height, width = size.unbind(-1)
    return torch.stack((width, height, width, height), dim=-1).float()


def matching_cost(
    logits: Tensor, boxes: Tensor, target: dict[str, Tensor], config: LossConfig
) -> Tensor:
    """Cost (N, G) of giving each prediction each ground truth of one image.

    Args:
        logits: (N, K). boxes: (N, 4) normalised cxcywh.
        target: labels (G,), boxes (G, 4) normalised cxcywh, size (2,) height and width in pixels.

    Source: arXiv:2010.04159, appendix A.2; class cost in its log-sigmoid form, which stays
    finite for any logit.
    """
    class_logits = logits[:, target["labels"]].float()  # (N, G)
    probability = class_logits.sigmoid()
    alpha, gamma = config.focal_alpha, config.focal_gamma
    positive = alpha * (1 - probability) ** gamma * -F.logsigmoid(class_logits)
    negative = (1 - alpha) * probability**gamma * -F.logsigmoid(-class_logits)
    l1 = torch.cdist(boxes.float(), target["boxes"], p=1)
    scale = size_scale(target["size"])
    _, giou = generalised_iou(
        (cxcywh_to_xyxy(boxes.float()) * scale)[:, None],
        (cxcywh_to_xyxy(target["boxes"]) * scale)[None],
    )
    return (
        config.class_weight * (positive - negative)
        + config.box_weight * l1
        - config.giou_weight * giou
    )


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    target: dict[str, Tensor],
    config: LossConfig,
    *,
    repeats: int = 1,
) -> tuple[Tensor, Tensor]:
    """Indices of the matched predictions and of their ground truths, each (n,) int64.

    n is min(N, repeats * G): every ground truth may be matched `repeats` times.
    """
    device = logits.device
    if len(target["labels"]) == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return empty, empty
    cost = matching_cost(logits, boxes, target, config)
    cost = cost.nan_to_num(nan=IMPOSSIBLE, posinf=IMPOSSIBLE, neginf=-IMPOSSIBLE).cpu()
    rows, columns = linear_sum_assignment(cost.repeat(1, repeats).numpy())
    predictions = torch.as_tensor(rows, device=device)
    return predictions, torch.as_tensor(columns, device=device) % cost.shape[1]
