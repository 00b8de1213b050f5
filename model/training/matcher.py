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
    logits: Tensor, boxes: Tensor, *, targets: PaddedTargets, image: int, config: LossConfig
) -> Tensor:
    """Cost (T, N, G) of matching each prediction of a layer with each ground truth of an image.

    Args:
        logits: (T, B, N, K) of T layers. boxes: (T, B, N, 4) normalised cxcywh.
        image: which of the batch; G is its own count of ground truths, so nothing is padded.

    Source: arXiv:2010.04159, appendix A.2; class cost in its log-sigmoid form, which stays
    finite for any logit.
    """
    count = targets.counts[image]
    labels, truths = targets.labels[image, :count], targets.boxes[image, :count]
    scale = targets.scale[image]
    own = boxes[:, image]
    _, giou = generalised_iou(
        cxcywh_to_xyxy(own)[:, :, None] * scale, cxcywh_to_xyxy(truths) * scale
    )
    return (
        _class_cost(logits[:, image], labels, config)
        + config.box_weight * torch.cdist(own, truths.expand(len(own), -1, -1), p=1)
        - config.giou_weight * giou
    )


def _class_cost(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """(T, N, G) from logits (T, N, K) and labels (G,), each computed once per class or truth."""
    has_fewer_classes = logits.shape[-1] < len(labels)
    values = logits if has_fewer_classes else logits[..., labels]
    probability = values.sigmoid()
    alpha, gamma = config.focal_alpha, config.focal_gamma
    positive = alpha * (1 - probability) ** gamma * -F.logsigmoid(values)
    negative = (1 - alpha) * probability**gamma * -F.logsigmoid(-values)
    cost = config.class_weight * (positive - negative)
    return cost[..., labels] if has_fewer_classes else cost


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
    columns: list[list[int]] = [[], [], [], []]
    for image, costs in enumerate(_costs_on_host(logits, boxes, targets, config)):
        for layer, cost in enumerate(costs):
            predictions, truths = linear_sum_assignment(cost.repeat(1, repeats).numpy())
            columns[0] += [layer] * len(predictions)
            columns[1] += [image] * len(predictions)
            columns[2] += predictions.tolist()
            columns[3] += (truths % max(cost.shape[1], 1)).tolist()
    in_order = sorted(zip(*columns, strict=True))
    return Matches(*torch.tensor(in_order, dtype=torch.int64, device=logits.device).view(-1, 4).T)


def _costs_on_host(
    logits: Tensor, boxes: Tensor, targets: PaddedTargets, config: LossConfig
) -> list[Tensor]:
    """`matching_cost` of every image, finite; from a GPU, they are copied at once."""
    costs = [
        matching_cost(logits, boxes, targets=targets, image=image, config=config)
        for image in range(len(targets.counts))
    ]
    flat = torch.cat([cost.flatten() for cost in costs]).nan_to_num_(
        nan=IMPOSSIBLE, posinf=IMPOSSIBLE, neginf=-IMPOSSIBLE
    )
    parts = flat.cpu().split([cost.numel() for cost in costs])
    return [part.view_as(cost) for part, cost in zip(parts, costs, strict=True)]
