"""Training samples and their augmentation: flip, resize and crop, boxes kept in step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Sample:
    """One image with its boxes, in pixels of that image.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        boxes_xyxy_px: (G, 4) float32, inside the image.
        labels: (G,) int64, 0..K-1.
    """

    image: np.ndarray
    boxes_xyxy_px: np.ndarray
    labels: np.ndarray


def to_target(sample: Sample, image_id: int) -> dict[str, Any]:
    """What the loss takes: labels (G,), boxes (G, 4) normalised cxcywh, size (2,), image_id."""
    height, width = sample.image.shape[:2]
    x1, y1, x2, y2 = torch.from_numpy(sample.boxes_xyxy_px).unbind(-1)
    boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)
    return {
        "labels": torch.from_numpy(sample.labels),
        "boxes": boxes / torch.tensor([width, height, width, height], dtype=torch.float32),
        "size": torch.tensor([height, width]),
        "image_id": image_id,
    }
