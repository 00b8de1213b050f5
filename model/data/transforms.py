"""Training samples and their augmentation: flip, resize, crop, colour, applied to boxes too."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from bundle.preprocess import Preprocess, resized_size
from model.config import AugmentConfig


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


Transform = Callable[[Sample, np.random.Generator], Sample]


def make_transform(augment: AugmentConfig | None, preprocess: Preprocess) -> Transform:
    """The function that brings a sample to input size: augmentation, or the resize of serving."""
    if augment is None:
        return partial(_fit, preprocess=preprocess)
    return partial(augment_sample, config=augment)


def least_side(augment: AugmentConfig | None) -> int | None:
    """The short side that a smaller copy of any image must keep; None if it must be the image."""
    if augment is None or not augment.scaled_decoding:
        return None
    sides = list(augment.short_sides)
    if augment.crop_probability:
        sides += augment.crop_short_sides
    _, zoom_in = augment.scale_jitter or (1.0, 1.0)
    return math.ceil(max(sides) * max(1.0, zoom_in))


def largest_size(
    sizes: np.ndarray, augment: AugmentConfig | None, *, preprocess: Preprocess
) -> tuple[int, int]:
    """The largest height and width that a batch can be padded to, in pixels.

    Args:
        sizes: (I, 2), height and width of every image before the transform.
    """
    limits = augment or preprocess
    short_side = preprocess.short_side if augment is None else max(augment.short_sides)
    resized = [
        resized_size(height, width, short_side=short_side, long_side=limits.long_side)
        for height, width in np.unique(sizes, axis=0).tolist()
    ]
    height, width = np.max(resized, axis=0).tolist()
    if augment is not None and augment.crop_probability:  # the sides of a crop are independent
        side = math.ceil(short_side * augment.crop_max / augment.crop_min)
        longest = min(augment.long_side, side)
        height, width = max(height, longest), max(width, longest)
    return max(height, preprocess.min_side), max(width, preprocess.min_side)


def augment_sample(sample: Sample, rng: np.random.Generator, *, config: AugmentConfig) -> Sample:
    """Randomly flip either way, perhaps crop at one of three sizes, then resize; colours last.

    Source: the training pipeline of DETR (arXiv:2005.12872, appendix A.4) with the sizes of
    `config`. Works for any image size: a crop is never larger than its image.
    """
    if rng.random() < config.flip_probability:
        sample = flip(sample)
    if config.vertical_flip_probability and rng.random() < config.vertical_flip_probability:
        sample = flip_vertically(sample)
    if rng.random() < config.crop_probability:
        short_side = int(rng.choice(config.crop_short_sides))
        sample = resize(sample, short_side, long_side=config.crop_long_side)
        sample = random_crop(sample, rng, crop_min=config.crop_min, crop_max=config.crop_max)
    short_side = int(rng.choice(config.short_sides))
    if config.scale_jitter is None:
        sample = resize(sample, short_side, long_side=config.long_side)
    else:
        factor = rng.uniform(*config.scale_jitter)
        sample = zoom(sample, factor, short_side=short_side, long_side=config.long_side, rng=rng)
    if config.colour_jitter:
        image = jitter_colour(sample.image, config.colour_jitter, rng=rng)
        sample = replace(sample, image=image)
    return sample


def zoom(
    sample: Sample,
    factor: float,
    *,
    short_side: int,
    long_side: int,
    rng: np.random.Generator,
) -> Sample:
    """Resize to `factor` times the size that `resize` gives; what exceeds that size is cropped.

    Source: large scale jittering, arXiv:2012.07177, without the padding that batches add anyway.
    """
    height, width = resized_size(
        *sample.image.shape[:2], short_side=short_side, long_side=long_side
    )
    new_height, new_width = (max(1, round(side * factor)) for side in (height, width))
    sample = resize_to(sample, new_height, width=new_width)
    height, width = min(height, new_height), min(width, new_width)
    top = int(rng.integers(new_height - height + 1))
    left = int(rng.integers(new_width - width + 1))
    return crop(sample, top, left=left, height=height, width=width)


def jitter_colour(image: np.ndarray, strength: float, *, rng: np.random.Generator) -> np.ndarray:
    """Change hue, saturation, brightness and contrast of an image (h, w, 3) uint8 RGB.

    At strength 1, hue turns by up to 18 degrees, and the others change by up to a half.

    Source: photometric distortion as in SSD, arXiv:1512.02325.
    """
    saturation, brightness, contrast = 1 + 0.5 * strength * rng.uniform(-1, 1, 3)
    hue = round(9 * strength * rng.uniform(-1, 1))  # OpenCV counts 180 to the circle
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + hue) % 180
    hsv[..., 1] = np.minimum(hsv[..., 1] * saturation, 255)
    turned = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    mean = turned.mean()
    changed: np.ndarray = (turned - mean) * contrast + mean * brightness
    return changed.round().clip(0, 255).astype(np.uint8)


def flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    boxes = sample.boxes_xyxy_px.copy()
    boxes[:, [0, 2]] = sample.image.shape[1] - boxes[:, [2, 0]]
    return Sample(cv2.flip(sample.image, 1), boxes, sample.labels)


def flip_vertically(sample: Sample) -> Sample:
    """Mirror top and bottom."""
    boxes = sample.boxes_xyxy_px.copy()
    boxes[:, [1, 3]] = sample.image.shape[0] - boxes[:, [3, 1]]
    return Sample(cv2.flip(sample.image, 0), boxes, sample.labels)


def resize(sample: Sample, short_side: int, *, long_side: int) -> Sample:
    """Resize as inference does: bilinear, no antialiasing, aspect ratio kept."""
    height, width = sample.image.shape[:2]
    new_height, new_width = resized_size(height, width, short_side=short_side, long_side=long_side)
    return resize_to(sample, new_height, width=new_width)


def resize_to(sample: Sample, height: int, *, width: int) -> Sample:
    """Resize to this size: bilinear, no antialiasing."""
    old_height, old_width = sample.image.shape[:2]
    image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_LINEAR)
    scale = np.array([width / old_width, height / old_height], dtype=np.float32)
    boxes = _clip(sample.boxes_xyxy_px * np.tile(scale, 2), height, width)
    return Sample(image, boxes, sample.labels)


def random_crop(
    sample: Sample, rng: np.random.Generator, *, crop_min: int, crop_max: int
) -> Sample:
    """Crop to random sides, drawn independently from crop_min..crop_max pixels."""
    height, width = sample.image.shape[:2]
    crop_height = int(rng.integers(min(height, crop_min), min(height, crop_max) + 1))
    crop_width = int(rng.integers(min(width, crop_min), min(width, crop_max) + 1))
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    return crop(sample, top, left=left, height=crop_height, width=crop_width)


def crop(sample: Sample, top: int, *, left: int, height: int, width: int) -> Sample:
    """Crop the image. Boxes are clipped to the crop, and dropped if nothing is left of them."""
    image = np.ascontiguousarray(sample.image[top : top + height, left : left + width])
    shift = np.array([left, top, left, top], dtype=np.float32)
    boxes = _clip(sample.boxes_xyxy_px - shift, height, width)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return Sample(image, boxes[has_area], sample.labels[has_area])


def to_target(sample: Sample, image_id: int) -> dict[str, Any]:
    """The target for the loss: labels (G,), boxes (G, 4) normalised cxcywh, size (2,), image_id."""
    height, width = sample.image.shape[:2]
    boxes = xyxy_to_cxcywh(torch.from_numpy(sample.boxes_xyxy_px))
    return {
        "labels": torch.from_numpy(sample.labels),
        "boxes": boxes / torch.tensor([width, height, width, height], dtype=torch.float32),
        "size": torch.tensor([height, width]),
        "image_id": image_id,
    }


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Centre and size (..., 4) of boxes given by corners (..., 4)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=-1)


def _clip(boxes_xyxy_px: np.ndarray, height: int, width: int) -> np.ndarray:
    limits = np.array([width, height, width, height], dtype=np.float32)
    clipped: np.ndarray = np.clip(boxes_xyxy_px, 0, limits)
    return clipped


def _fit(sample: Sample, rng: np.random.Generator, *, preprocess: Preprocess) -> Sample:
    return resize(sample, preprocess.short_side, long_side=preprocess.long_side)
