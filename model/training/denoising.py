"""Noisy copies of objects, which extra queries of the decoder learn to restore.

Source: contrastive denoising, DINO, arXiv:2203.03605, after DN-DETR, arXiv:2203.01305.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.config import LossConfig
from model.network.boxes import cxcywh_to_xyxy
from model.network.query_parts import NoisyObjects


def num_groups(num_objects: int, *, num_queries: int) -> int:
    """How many groups an image has room for: at least one, or none without objects.

    It depends on the image alone, so that its loss does not depend on its batch.
    """
    return max(1, num_queries // (2 * num_objects)) if num_objects else 0


def add_noise(
    targets: list[dict[str, Any]],
    *,
    num_queries: int,
    num_classes: int,
    config: LossConfig,
    seed: tuple[int, ...],
) -> NoisyObjects:
    """The objects of every image, once near their place and once far from it, in every group.

    Args:
        targets: image_id, labels (G,) and boxes (G, 4) normalised cxcywh of every image, on the
            host.
        num_queries: how many an image has for this, unless a single group needs more.
        seed: of the step. The noise of an image depends on it and on the image's id alone, so it is
            the same in any batch and process.
    """
    slots = [_slots(target, num_queries, num_classes, config, seed) for target in targets]
    labels, boxes, groups, truth = zip(*slots, strict=True)
    return NoisyObjects(
        pad_sequence(list(labels), batch_first=True),
        pad_sequence(list(boxes), batch_first=True, padding_value=0.5),
        pad_sequence(list(groups), batch_first=True, padding_value=-1),
        pad_sequence(list(truth), batch_first=True, padding_value=-1),
    )


def _slots(
    target: dict[str, Any],
    num_queries: int,
    num_classes: int,
    config: LossConfig,
    seed: tuple[int, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, boxes, groups and truth of an image; in every group, near copies, then far ones."""
    count = len(target["labels"])
    repeats = num_groups(count, num_queries=num_queries)
    order = torch.arange(count).repeat(2 * repeats)  # (n,)
    groups = torch.arange(repeats).repeat_interleave(2 * count)
    is_far = torch.tensor([False, True]).repeat_interleave(count).repeat(repeats)
    entropy = np.random.SeedSequence([*seed, target["image_id"] % 2**64])
    generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
    noise = torch.rand(len(order), 10, generator=generator)
    is_wrong = noise[:, 0] < config.denoising_label_noise
    others = (noise[:, 1] * num_classes).long()
    labels = torch.where(is_wrong, others, target["labels"][order])
    signs = torch.where(noise[:, 2:6] < 0.5, -1.0, 1.0)
    shift = config.denoising_box_noise * signs * (noise[:, 6:] + is_far[:, None])
    boxes = _shift_corners(target["boxes"][order], shift)
    return labels, boxes, groups, torch.where(is_far, -1, order)


def _shift_corners(boxes: Tensor, shift: Tensor) -> Tensor:
    """Boxes (n, 4) whose corners moved by `shift` (n, 4) half sides, inside the image."""
    half = boxes[:, 2:].repeat(1, 2) / 2
    corners = (cxcywh_to_xyxy(boxes) + shift * half).clamp(0, 1)
    low, high = torch.minimum(*corners.split(2, 1)), torch.maximum(*corners.split(2, 1))
    return torch.cat(((low + high) / 2, high - low), dim=1)
