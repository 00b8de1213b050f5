"""The training loss: classification, L1 and GIoU over every decoder layer and the encoder head."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import LossConfig, ModelConfig, Variant
from model.distributed import sum_in_place
from model.network.boxes import cxcywh_to_xyxy, generalised_iou
from model.training.matcher import PaddedTargets, match

Targets = list[dict[str, Any]]
TERMS = ("loss_cls", "loss_bbox", "loss_iou")


class LossNormalisers(NamedTuple):
    """The divisors of the sums: matched pairs in the whole effective batch, at least 1."""

    decoder: float
    encoder: float


def loss_normalisers(
    targets: Targets, *, num_queries: int, num_tokens: int | None, config: LossConfig
) -> LossNormalisers:
    """The number of pairs the matcher will make, which depends only on counts of ground truths.

    Args:
        targets: of every image in this process's share of the effective batch, over all
            accumulation steps. The counts of all processes are added up.
        num_queries: Q. num_tokens: S, the proposals of an image; None for no limit.
    """
    counts = [len(target["labels"]) for target in targets]
    decoder = sum(min(num_queries, count) for count in counts)
    repeated = [config.encoder_matches * count for count in counts]
    encoder = sum(count if num_tokens is None else min(num_tokens, count) for count in repeated)
    pairs = torch.tensor([decoder, encoder], dtype=torch.float64)
    sum_in_place(pairs)
    return LossNormalisers(*pairs.clamp(min=1).tolist())


def require_class_weights(config: LossConfig, class_names: Sequence[str]) -> None:
    """Raise ValueError unless there is a weight for each class, or none at all."""
    if config.class_weights and len(config.class_weights) != len(class_names):
        raise ValueError(
            f"loss.class_weights has {len(config.class_weights)} numbers, expected one for each of "
            f"the {len(class_names)} classes, in this order: {', '.join(class_names)}"
        )


def loss_names(config: ModelConfig) -> list[str]:
    """The names of the terms of `compute_losses`, in its order."""
    prefixes = [*(f"d{i}." for i in range(config.num_decoder_layers - 1)), ""]
    if config.variant is Variant.TWO_STAGE:
        prefixes.append("enc_")
    return [f"{prefix}{name}" for prefix in prefixes for name in TERMS]


def compute_losses(
    outputs: dict[str, Any],
    targets: Targets,
    *,
    config: LossConfig,
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
    padded = PaddedTargets.of(targets)
    layers = [*outputs["aux_outputs"], outputs]
    decoder = _losses(layers, padded, config, normalisers.decoder)
    prefixes = [*(f"d{i}." for i in range(len(layers) - 1)), ""]
    losses = {
        f"{prefix}{name}": values[i]
        for i, prefix in enumerate(prefixes)
        for name, values in decoder.items()
    }
    if "enc_outputs" in outputs:
        # The encoder head only tells objects from background: every label is class 0.
        foreground = replace(padded, labels=torch.zeros_like(padded.labels))
        encoder = _losses(
            [outputs["enc_outputs"]],
            foreground,
            replace(config, class_weights=()),
            normalisers.encoder,
            repeats=config.encoder_matches,
        )
        losses.update({f"enc_{name}": values[0] for name, values in encoder.items()})
    return losses


def _losses(
    layers: list[dict[str, Tensor]],
    targets: PaddedTargets,
    config: LossConfig,
    normaliser: float,
    *,
    repeats: int = 1,
) -> dict[str, Tensor]:
    """The three weighted terms, each (T,), of T layers with predictions of one shape."""
    logits = torch.stack([layer["pred_logits"] for layer in layers]).float()  # (T, B, N, K)
    boxes = torch.stack([layer["pred_boxes"] for layer in layers]).float()  # (T, B, N, 4)
    matches = match(logits, boxes, targets=targets, config=config, repeats=repeats)
    matched = boxes[matches.layer, matches.image, matches.prediction]  # (n, 4)
    wanted = targets.boxes[matches.image, matches.truth]
    scale = targets.scale[matches.image]
    iou, giou = generalised_iou(cxcywh_to_xyxy(matched) * scale, cxcywh_to_xyxy(wanted) * scale)

    class_targets = torch.zeros_like(logits)
    labels = targets.labels[matches.image, matches.truth]
    quality = iou.detach().clamp(min=0) if config.classification == "varifocal" else 1.0
    class_targets[matches.layer, matches.image, matches.prediction, labels] = quality
    positive_weights = logits.new_tensor(config.class_weights or 1.0)  # (K,) or one for all

    nothing = boxes.sum(dim=(1, 2, 3)) * 0  # keeps the graph connected where nothing matched
    l1 = nothing.index_add(0, matches.layer, (matched - wanted).abs().sum(-1))
    overlap = nothing.index_add(0, matches.layer, 1 - giou)
    return {
        "loss_cls": _class_loss(logits, class_targets, positive_weights, config)
        * config.class_weight
        / normaliser,
        "loss_bbox": l1 * config.box_weight / normaliser,
        "loss_iou": overlap * config.giou_weight / normaliser,
    }


def _class_loss(
    logits: Tensor, targets: Tensor, positive_weights: Tensor, config: LossConfig
) -> Tensor:
    """Focal (arXiv:1708.02002) or varifocal loss (arXiv:2008.13367) summed per layer, (T,)."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    is_positive = targets > 0
    if config.classification == "varifocal":
        negative_weight = (1 - config.focal_alpha) * probability.detach() ** config.focal_gamma
        weight = torch.where(is_positive, targets, negative_weight)
    else:
        alpha = torch.where(is_positive, config.focal_alpha, 1 - config.focal_alpha)
        miss = torch.where(is_positive, 1 - probability, probability)
        weight = alpha * miss**config.focal_gamma
    weight = torch.where(is_positive, weight * positive_weights, weight)
    return (weight * cross_entropy).sum(dim=(1, 2, 3))
