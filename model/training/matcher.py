"""Hungarian matching of predictions to ground truth, for every layer and image at once."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.config import LossConfig
from model.network.boxes import cxcywh_to_xyxy, generalised_iou

IMPOSSIBLE = 1e6  # cost of a pair whose cost is not finite


@dataclass(frozen=True)
class PaddedTargets:
    """Ground truth of a batch as tensors; G is the largest count of boxes in an image.

    Attributes:
        labels: (B, G) int64. boxes: (B, G, 4) normalised cxcywh. Zero beyond an image's count.
        scale: (B, 4) float32, (w, h, w, h): normalised boxes times this are pixels.
        counts: number of ground truths in each image.
    """

    labels: Tensor
    boxes: Tensor
    scale: Tensor
    counts: list[int]

    @classmethod
    def of(cls, targets: list[dict[str, Any]]) -> "PaddedTargets":
        """Pad `targets`: labels (G,), boxes (G, 4) and size (2,) = (height, width) per image."""
        sizes = torch.stack([target["size"] for target in targets]).float()
        return cls(
            labels=pad_sequence([target["labels"] for target in targets], batch_first=True),
            boxes=pad_sequence([target["boxes"] for target in targets], batch_first=True),
            scale=sizes.flip(-1).repeat(1, 2),
            counts=[len(target["labels"]) for target in targets],
        )


class Matches(NamedTuple):
    """Matched pairs: int64 indices (n,) of layer, image, prediction and ground truth."""

    layer: Tensor
    image: Tensor
    prediction: Tensor
    truth: Tensor


def matching_cost(
    logits: Tensor, boxes: Tensor, *, targets: PaddedTargets, config: LossConfig
) -> Tensor:
    """Cost (T, B, N, G) of matching each prediction of a layer with each ground truth of its image.

    Args:
        logits: (T, B, N, K) of T layers. boxes: (T, B, N, 4) normalised cxcywh.

    Source: arXiv:2010.04159, appendix A.2; class cost in its log-sigmoid form, which stays
    finite for any logit.
    """
    num_layers, _, num_predictions, _ = logits.shape
    index = targets.labels[None, :, None].expand(num_layers, -1, num_predictions, -1)
    class_logits = logits.gather(-1, index)
    probability = class_logits.sigmoid()
    alpha, gamma = config.focal_alpha, config.focal_gamma
    positive = alpha * (1 - probability) ** gamma * -F.logsigmoid(class_logits)
    negative = (1 - alpha) * probability**gamma * -F.logsigmoid(-class_logits)
    l1 = torch.cdist(boxes, targets.boxes[None].expand(num_layers, -1, -1, -1), p=1)
    scale = targets.scale[:, None, None]
    _, giou = generalised_iou(
        cxcywh_to_xyxy(boxes)[..., None, :] * scale,
        cxcywh_to_xyxy(targets.boxes)[:, None] * scale,
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
    *,
    targets: PaddedTargets,
    config: LossConfig,
    repeats: int = 1,
) -> Matches:
    """The cheapest one-to-one assignment within every layer and image.

    Shapes as in `matching_cost`. min(N, repeats * G_b) pairs are made for image b: every ground
    truth may be matched `repeats` times.
    """
    num_layers, batch = logits.shape[:2]
    cost = matching_cost(logits, boxes, targets=targets, config=config)
    cost = cost.nan_to_num(nan=IMPOSSIBLE, posinf=IMPOSSIBLE, neginf=-IMPOSSIBLE).cpu()
    columns: list[list[int]] = [[], [], [], []]
    for layer in range(num_layers):
        for image in range(batch):
            count = targets.counts[image]
            pairs = cost[layer, image, :, :count].repeat(1, repeats)
            predictions, truths = linear_sum_assignment(pairs.numpy())
            columns[0] += [layer] * len(predictions)
            columns[1] += [image] * len(predictions)
            columns[2] += predictions.tolist()
            columns[3] += (truths % max(count, 1)).tolist()
    return Matches(*torch.tensor(columns, dtype=torch.int64, device=logits.device))
