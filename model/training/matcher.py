"""Hungarian matching of predictions to ground truth, for every layer and image at once."""

from collections.abc import Sequence
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


class Predictions(NamedTuple):
    """What T layers predicted, and what it is matched to.

    Attributes:
        logits: (T, B, N, K) float32. boxes: (T, B, N, 4) float32, normalised cxcywh.
        repeats: how often each ground truth may be matched.
    """

    logits: Tensor
    boxes: Tensor
    targets: PaddedTargets
    repeats: int = 1


class Matches(NamedTuple):
    """Matched pairs: int64 indices (n,) of layer, image, prediction and ground truth."""

    layer: Tensor
    image: Tensor
    prediction: Tensor
    truth: Tensor


def matching_cost(predictions: Predictions, *, image: int, config: LossConfig) -> Tensor:
    """Cost (T, N, G) of matching each prediction of a layer with each ground truth of an image.

    Args:
        image: which of the batch; G is its own count of ground truths, so nothing is padded.

    Source: arXiv:2010.04159, appendix A.2; class cost in its log-sigmoid form, which stays
    finite for any logit.
    """
    targets, own = predictions.targets, predictions.boxes[:, image]
    count = targets.counts[image]
    labels, truths = targets.labels[image, :count], targets.boxes[image, :count]
    scale = targets.scale[image]
    _, giou = generalised_iou(
        cxcywh_to_xyxy(own)[:, :, None] * scale, cxcywh_to_xyxy(truths) * scale
    )
    return (
        _class_cost(predictions.logits[:, image], labels, config)
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
def match(parts: Sequence[Predictions], *, config: LossConfig) -> list[Matches]:
    """The cheapest one-to-one assignment within every layer and image, for each of the parts.

    min(N, repeats * G_b) pairs are made for image b. A GPU is waited for once, for the costs of
    all parts.
    """
    found = [
        _assign(costs, repeats=part.repeats)
        for part, costs in zip(parts, _costs_on_host(parts, config), strict=True)
    ]
    pairs = torch.cat(found).to(parts[0].logits.device, non_blocking=True)
    return [Matches(*rows.T) for rows in pairs.split([len(rows) for rows in found])]


def _assign(costs: list[Tensor], *, repeats: int) -> Tensor:
    """Pairs (n, 4), in order, with the columns of `Matches`, for costs (T, N, G) by image."""
    columns: list[list[int]] = [[], [], [], []]
    for image, layers in enumerate(costs):
        for layer, cost in enumerate(layers):
            predictions, truths = linear_sum_assignment(cost.repeat(1, repeats).numpy())
            columns[0] += [layer] * len(predictions)
            columns[1] += [image] * len(predictions)
            columns[2] += predictions.tolist()
            columns[3] += (truths % cost.shape[1]).tolist()
    return torch.tensor(sorted(zip(*columns, strict=True)), dtype=torch.int64).view(-1, 4)


def _costs_on_host(parts: Sequence[Predictions], config: LossConfig) -> list[list[Tensor]]:
    """By part, `matching_cost` of every image, finite; from a GPU, they are copied at once."""
    costs = [
        [matching_cost(part, image=image, config=config) for image in range(part.logits.shape[1])]
        for part in parts
    ]
    flat = torch.cat([cost.flatten() for part in costs for cost in part]).nan_to_num_(
        nan=IMPOSSIBLE, posinf=IMPOSSIBLE, neginf=-IMPOSSIBLE
    )
    pieces = iter(flat.cpu().split([cost.numel() for part in costs for cost in part]))
    return [[next(pieces).view_as(cost) for cost in part] for part in costs]
