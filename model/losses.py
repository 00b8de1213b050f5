"""The training loss: classification, L1 and GIoU over every decoder layer and the encoder head."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.boxes import cxcywh_to_xyxy, generalised_iou
from model.config import LossConfig
from model.matcher import match, size_scale

Targets = list[dict[str, Any]]


class LossNormalisers(NamedTuple):
    """Matched pairs over the whole effective batch, at least 1: what the sums are divided by."""

    decoder: float
    encoder: float


def loss_normalisers(
    targets: Targets, *, num_queries: int, num_tokens: int | None, config: LossConfig
) -> LossNormalisers:
    """Number of pairs the matcher will make, which only the counts of ground truths decide.

    Args:
        targets: of every image in the effective batch, over all accumulation steps.
        num_queries: Q. num_tokens: S, the proposals of an image; None where it bounds nothing.
    """
    counts = [len(target["labels"]) for target in targets]
    decoder = sum(min(num_queries, count) for count in counts)
    repeated = [config.encoder_matches * count for count in counts]
    encoder = sum(count if num_tokens is None else min(num_tokens, count) for count in repeated)
    return LossNormalisers(max(decoder, 1.0), max(encoder, 1.0))


def compute_losses(
    outputs: dict[str, Any],
    targets: Targets,
    config: LossConfig,
    *,
    normalisers: LossNormalisers | None = None,
) -> dict[str, Tensor]:
    """Weighted loss terms; the total is their sum.

    Args:
        outputs: of `DeformableDetr.forward`.
        targets: per image labels (G,) int64, boxes (G, 4) float32 cxcywh normalised by the
            un-padded size, and size (2,) = (height, width) in pixels.
        normalisers: of the effective batch; by default of these targets alone.

    Returns:
        loss_cls, loss_bbox, loss_iou of the last layer, d{i}.loss_* of layer i, and in
        two_stage enc_loss_*.

    Source: arXiv:2010.04159, appendix A.4; normalised by matched pairs, as in mmdetection.
    """
    if normalisers is None:
        enc_outputs = outputs.get("enc_outputs")
        normalisers = loss_normalisers(
            targets,
            num_queries=outputs["pred_logits"].shape[1],
            num_tokens=None if enc_outputs is None else enc_outputs["pred_logits"].shape[1],
            config=config,
        )
    losses = _layer_losses(outputs, targets, config, normalisers.decoder)
    for i, layer in enumerate(outputs["aux_outputs"]):
        terms = _layer_losses(layer, targets, config, normalisers.decoder)
        losses.update({f"d{i}.{name}": value for name, value in terms.items()})
    if "enc_outputs" in outputs:
        # The encoder head only tells objects from background: every label is class 0.
        foreground = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
        terms = _layer_losses(
            outputs["enc_outputs"],
            foreground,
            config,
            normalisers.encoder,
            repeats=config.encoder_matches,
        )
        losses.update({f"enc_{name}": value for name, value in terms.items()})
    return losses


def _layer_losses(
    outputs: dict[str, Tensor],
    targets: Targets,
    config: LossConfig,
    normaliser: float,
    *,
    repeats: int = 1,
) -> dict[str, Tensor]:
    """The three terms of one set of predictions (B, N, K) and (B, N, 4)."""
    logits, boxes = outputs["pred_logits"].float(), outputs["pred_boxes"].float()
    class_targets = torch.zeros_like(logits)
    l1_terms, giou_terms = [boxes.sum() * 0], [boxes.sum() * 0]  # keeps the graph connected
    for b, target in enumerate(targets):
        predictions, truths = match(logits[b], boxes[b], target, config, repeats=repeats)
        matched, wanted = boxes[b, predictions], target["boxes"][truths]
        scale = size_scale(target["size"])
        iou, giou = generalised_iou(cxcywh_to_xyxy(matched) * scale, cxcywh_to_xyxy(wanted) * scale)
        l1_terms.append((matched - wanted).abs().sum())
        giou_terms.append((1 - giou).sum())
        quality = iou.detach().clamp(min=0) if config.classification == "varifocal" else 1.0
        class_targets[b, predictions, target["labels"][truths]] = quality
    return {
        "loss_cls": config.class_weight * _class_loss(logits, class_targets, config) / normaliser,
        "loss_bbox": config.box_weight * torch.stack(l1_terms).sum() / normaliser,
        "loss_iou": config.giou_weight * torch.stack(giou_terms).sum() / normaliser,
    }


def _class_loss(logits: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    """Focal loss (arXiv:1708.02002), or varifocal loss (arXiv:2008.13367), summed."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if config.classification == "varifocal":
        negative_weight = (1 - config.focal_alpha) * probability.detach() ** config.focal_gamma
        return (torch.where(targets > 0, targets, negative_weight) * cross_entropy).sum()
    is_positive = targets > 0
    miss = torch.where(is_positive, 1 - probability, probability)
    alpha = torch.where(is_positive, config.focal_alpha, 1 - config.focal_alpha)
    return (alpha * miss**config.focal_gamma * cross_entropy).sum()
