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
from model.network.queries import PADDING_LOGIT
from model.network.query_parts import NoisyObjects
from model.training.denoising import num_groups
from model.training.matcher import Matches, PaddedTargets, Predictions, match

Targets = list[dict[str, Any]]
TERMS = ("loss_cls", "loss_bbox", "loss_iou")


class LossNormalisers(NamedTuple):
    """The divisors of the sums: matched pairs in the whole effective batch, at least 1."""

    decoder: float
    encoder: float
    one_to_many: float = 1.0
    denoising: float = 1.0


def loss_normalisers(
    targets: Targets,
    *,
    num_queries: int,
    num_tokens: int | None,
    config: LossConfig,
    num_one_to_many: int = 0,
    num_denoising: int = 0,
) -> LossNormalisers:
    """The number of pairs the matcher will make, which depends only on counts of ground truths.

    Args:
        targets: of every image in this process's share of the effective batch, over all
            accumulation steps. The counts of all processes are added up.
        num_queries: Q. num_tokens: S, the proposals of an image; None for no limit.
        num_one_to_many, num_denoising: extra queries in training.
    """
    counts = [len(target["labels"]) for target in targets]
    decoder = sum(min(num_queries, count) for count in counts)
    repeated = [config.encoder_matches * count for count in counts]
    encoder = sum(count if num_tokens is None else min(num_tokens, count) for count in repeated)
    one_to_many = sum(min(num_one_to_many, config.one_to_many_matches * n) for n in counts)
    denoising = sum(num_groups(n, num_queries=num_denoising) * n for n in counts)
    pairs = torch.tensor([decoder, encoder, one_to_many, denoising], dtype=torch.float64)
    sum_in_place(pairs)
    return LossNormalisers(*pairs.clamp(min=1).tolist())


def require_class_weights(config: LossConfig, class_names: Sequence[str]) -> None:
    """Raise ValueError unless there is a weight for each class, or none at all."""
    if config.class_weights and len(config.class_weights) != len(class_names):
        raise ValueError(
            f"expected a number in loss.class_weights for each class, {len(class_names)} in all, "
            f"got {len(config.class_weights)}; the order of classes is {', '.join(class_names)}"
        )


def loss_names(config: ModelConfig) -> list[str]:
    """The names of the terms of `compute_losses`, in its order."""
    prefixes = [*(f"d{i}." for i in range(config.num_decoder_layers - 1)), ""]
    if config.variant is Variant.TWO_STAGE:
        prefixes.append("enc_")
    if config.one_to_many_queries:
        prefixes.append("one_to_many_")
    if config.denoising_queries:
        prefixes.append("denoising_")
    return [f"{prefix}{name}" for prefix in prefixes for name in TERMS]


def compute_losses(
    outputs: dict[str, Any],
    targets: Targets,
    *,
    config: LossConfig,
    normalisers: LossNormalisers | None = None,
    noisy: NoisyObjects | None = None,
) -> dict[str, Tensor]:
    """Weighted loss terms; the total is their sum.

    Args:
        outputs: of `DeformableDetr.forward`.
        targets: per image labels (G,) int64, boxes (G, 4) float32 cxcywh normalised by the
            un-padded size, and size (2,) = (height, width) in pixels.
        normalisers: of the effective batch; by default of these targets alone.
        noisy: the objects that the model was given, if any.

    Returns:
        loss_cls, loss_bbox, loss_iou of the last layer, d{i}.loss_* of layer i, in two_stage
        enc_loss_*, and one_to_many_loss_* and denoising_loss_*, summed over layers.

    Source: arXiv:2010.04159, appendix A.4; normalised by matched pairs, as in mmdetection.
    """
    if normalisers is None:
        normalisers = _normalisers_of(outputs, targets, config, noisy)
    padded = PaddedTargets.of(targets)
    layers = _layers(outputs)
    parts = {"decoder": _stack(layers, padded)}
    if "enc_outputs" in outputs:
        objects = replace(padded, labels=torch.zeros_like(padded.labels))  # all of class 0
        parts["encoder"] = _stack([outputs["enc_outputs"]], objects, config.encoder_matches)
    if "one_to_many" in outputs:
        several = _layers(outputs["one_to_many"])
        parts["one_to_many"] = _stack(several, padded, config.one_to_many_matches)
    matches = dict(zip(parts, match(list(parts.values()), config=config), strict=True))

    found = _matched_losses(parts["decoder"], matches["decoder"], config, normalisers.decoder)
    prefixes = [*(f"d{i}." for i in range(len(layers) - 1)), ""]
    losses = {
        f"{prefix}{name}": values[i]
        for i, prefix in enumerate(prefixes)
        for name, values in found.items()
    }
    if "encoder" in parts:  # its head only tells objects from background
        unweighted = replace(config, class_weights=())
        found = _matched_losses(
            parts["encoder"], matches["encoder"], unweighted, normalisers.encoder
        )
        losses |= {f"enc_{name}": values[0] for name, values in found.items()}
    if "one_to_many" in parts:
        found = _matched_losses(
            parts["one_to_many"], matches["one_to_many"], config, normalisers.one_to_many
        )
        weight = config.one_to_many_weight
        losses |= {f"one_to_many_{name}": weight * values.sum() for name, values in found.items()}
    if noisy is not None:
        found = _denoising_losses(outputs["denoising"], noisy, padded, config, normalisers)
        losses |= {f"denoising_{name}": values.sum() for name, values in found.items()}
    return losses


def _normalisers_of(
    outputs: dict[str, Any], targets: Targets, config: LossConfig, noisy: NoisyObjects | None
) -> LossNormalisers:
    """The divisors where these targets are the whole effective batch."""
    enc_outputs, one_to_many = outputs.get("enc_outputs"), outputs.get("one_to_many")
    normalisers = loss_normalisers(
        targets,
        num_queries=outputs["pred_logits"].shape[1],
        num_tokens=None if enc_outputs is None else enc_outputs["pred_logits"].shape[1],
        config=config,
        num_one_to_many=0 if one_to_many is None else one_to_many["pred_logits"].shape[1],
    )
    if noisy is None:
        return normalisers
    return normalisers._replace(denoising=max(1, int((noisy.truth >= 0).sum())))


def _layers(outputs: dict[str, Any]) -> list[dict[str, Tensor]]:
    return [*outputs["aux_outputs"], outputs]


def _stack(
    layers: list[dict[str, Tensor]], targets: PaddedTargets, repeats: int = 1
) -> Predictions:
    logits = torch.stack([layer["pred_logits"] for layer in layers]).float()
    boxes = torch.stack([layer["pred_boxes"] for layer in layers]).float()
    return Predictions(logits, boxes, targets, repeats)


def _denoising_losses(
    outputs: dict[str, Any],
    noisy: NoisyObjects,
    targets: PaddedTargets,
    config: LossConfig,
    normalisers: LossNormalisers,
) -> dict[str, Tensor]:
    """The terms of noisy objects: near copies are matched to their object, far ones to none."""
    found = _stack(_layers(outputs), targets)
    # The focal loss of this logit is 0: empty slots do not count.
    is_empty = (noisy.groups < 0)[None, ..., None]
    found = found._replace(logits=found.logits.masked_fill(is_empty, PADDING_LOGIT))
    image, slot = (noisy.truth >= 0).nonzero(as_tuple=True)  # on the host
    num_layers = len(found.logits)
    layer = torch.arange(num_layers).repeat_interleave(len(image))
    repeated = torch.stack((image, slot, noisy.truth[image, slot])).repeat(1, num_layers)
    pairs = torch.cat((layer[None], repeated)).to(found.logits.device, non_blocking=True)
    return _matched_losses(found, Matches(*pairs), config, normalisers.denoising)


def _matched_losses(
    predictions: Predictions, matches: Matches, config: LossConfig, normaliser: float
) -> dict[str, Tensor]:
    """The three weighted terms, each (T,), of T layers."""
    logits, boxes, targets, _ = predictions
    matched = boxes[matches.layer, matches.image, matches.prediction]  # (n, 4)
    wanted = targets.boxes[matches.image, matches.truth]
    scale = targets.scale[matches.image]
    iou, giou = generalised_iou(cxcywh_to_xyxy(matched) * scale, cxcywh_to_xyxy(wanted) * scale)

    class_targets = torch.zeros_like(logits)
    labels = targets.labels[matches.image, matches.truth]
    quality = iou.detach().clamp(min=0) if config.classification == "varifocal" else 1.0
    class_targets[matches.layer, matches.image, matches.prediction, labels] = quality
    positive_weights = torch.tensor(config.class_weights or 1.0)  # (K,) or one for all
    positive_weights = positive_weights.to(logits.device, non_blocking=True)

    nothing = boxes.new_zeros(len(boxes))
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
