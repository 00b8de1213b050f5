"""Samples of different sizes padded and stacked into one batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bundle.preprocess import pad_batch

Target = dict[str, Any]
MicroBatch = tuple[Tensor, Tensor, list[Target]]  # as `collate` returns it


class Packed(NamedTuple):
    """A batch in five tensors, however many images it has.

    Each tensor costs two processes 0.2 ms on its way from one to the other, whatever its size.

    Attributes:
        labels, boxes: of all images, one after another; `counts` of them belong to each.
        sizes: (B, 2).
    """

    images: Tensor
    padding_mask: Tensor
    labels: Tensor
    boxes: Tensor
    sizes: Tensor
    counts: list[int]
    image_ids: list[int]


def collate(samples: Sequence[tuple[np.ndarray, Target]], min_side: int = 1) -> MicroBatch:
    """Pad at the bottom and right to the largest height and width of the batch.

    Args:
        samples: pairs of an image (h, w, 3) uint8 RGB and its target, from a data set.
        min_side: smallest padded height and width, in pixels.

    Returns:
        images (B, H, W, 3) uint8, padding_mask (B, H, W) bool, True on padding, and the targets
        unchanged: their boxes are relative to the un-padded image.
    """
    images, padding_mask = pad_batch([image for image, _ in samples], min_side)
    targets = [target for _, target in samples]
    return torch.from_numpy(images), torch.from_numpy(padding_mask), targets


def pack(batch: MicroBatch) -> Packed:
    """The batch for its way to another process."""
    images, padding_mask, targets = batch
    return Packed(
        images,
        padding_mask,
        labels=torch.cat([torch.zeros(0, dtype=torch.int64), *(t["labels"] for t in targets)]),
        boxes=torch.cat([torch.zeros(0, 4), *(t["boxes"] for t in targets)]),
        sizes=torch.stack([t["size"] for t in targets]) if targets else torch.zeros(0, 2),
        counts=[len(t["labels"]) for t in targets],
        image_ids=[t["image_id"] for t in targets],
    )


def unpack(packed: Packed) -> MicroBatch:
    """The batch that was packed; its targets are views."""
    columns = (
        packed.labels.split(packed.counts),
        packed.boxes.split(packed.counts),
        packed.sizes,
        packed.image_ids,
    )
    names = ("labels", "boxes", "size", "image_id")
    targets = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return packed.images, packed.padding_mask, targets
