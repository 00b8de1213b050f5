"""Training samples made of several images: mosaics, and objects pasted from another image.

Every box still covers its object's pixels, and no object is left without its box.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from model.config import AugmentConfig
from model.data.transforms import Sample, crop, resize_to

TRIES = 10  # to find a free place for an object
Draw = Callable[[np.random.Generator], Sample]  # any sample of the data set
Mix = Callable[[Sample, Draw, np.random.Generator], Sample]


def make_mix(augment: AugmentConfig | None) -> Mix | None:
    """The function that mixes a sample with others before its transform; None if there is none."""
    if augment is None or not (augment.mosaic_probability or augment.paste_probability):
        return None
    return partial(_mix, config=augment)


def _mix(sample: Sample, draw: Draw, rng: np.random.Generator, *, config: AugmentConfig) -> Sample:
    if rng.random() < config.mosaic_probability:
        sample = mosaic([sample, *(draw(rng) for _ in range(3))], rng)
    if rng.random() < config.paste_probability:
        sample = paste_objects(sample, draw(rng), rng=rng, most=config.paste_objects)
    return sample


def mosaic(samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
    """Four images, one in each corner, in the size of the first.

    The corners meet at a random point of the middle half. Every image is scaled so that it just
    covers its corner, and cropped to it at a random place.

    Source: YOLOv4, arXiv:2004.10934.
    """
    height, width = samples[0].image.shape[:2]
    if min(height, width) < 2:
        return samples[0]
    y, x = (max(1, int(side * rng.uniform(0.25, 0.75))) for side in (height, width))
    corners = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
    image = np.empty((height, width, 3), np.uint8)
    boxes, labels = [], []
    for sample, (top, left, bottom, right) in zip(samples, corners, strict=True):
        tile = _cover(sample, rng, height=bottom - top, width=right - left)
        image[top:bottom, left:right] = tile.image
        boxes.append(tile.boxes_xyxy_px + np.array([left, top, left, top], np.float32))
        labels.append(tile.labels)
    return Sample(image, np.concatenate(boxes), np.concatenate(labels))


def _cover(sample: Sample, rng: np.random.Generator, *, height: int, width: int) -> Sample:
    """The image scaled to cover this size, and cropped to it."""
    old_height, old_width = sample.image.shape[:2]
    scale = max(height / old_height, width / old_width)
    new_height, new_width = round(old_height * scale), round(old_width * scale)
    top = int(rng.integers(new_height - height + 1))
    left = int(rng.integers(new_width - width + 1))
    scaled = resize_to(sample, new_height, width=new_width)
    return crop(scaled, top, left=left, height=height, width=width)


def paste_objects(sample: Sample, source: Sample, *, rng: np.random.Generator, most: int) -> Sample:
    """Copy up to `most` objects of `source`, with the pixels in their boxes, to free places.

    Objects that touch others are not copied, and nothing that has a box is covered.

    Source: with boxes in place of masks, arXiv:2012.07177.
    """
    image, boxes, labels = sample.image.copy(), list(sample.boxes_xyxy_px), list(sample.labels)
    patches = [_whole_pixels(box) for box in source.boxes_xyxy_px]
    for index in rng.permutation(len(patches))[:most]:
        left, top, right, bottom = patches[index]
        if _touches(patches[index], np.delete(source.boxes_xyxy_px, index, axis=0)):
            continue
        size = bottom - top, right - left
        place = _free_place(size, image.shape[:2], np.array(boxes).reshape(-1, 4), rng)
        if place is None:
            continue
        y, x = place
        image[y : y + size[0], x : x + size[1]] = source.image[top:bottom, left:right]
        shift = np.array([x - left, y - top, x - left, y - top], np.float32)
        boxes.append(source.boxes_xyxy_px[index] + shift)
        labels.append(source.labels[index])
    return Sample(
        image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, sample.labels.dtype)
    )


def _whole_pixels(box: np.ndarray) -> np.ndarray:
    """The pixels (left, top, right, bottom) that a box covers."""
    return np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]).astype(int)


def _free_place(
    size: tuple[int, int], image_size: tuple[int, ...], boxes: np.ndarray, rng: np.random.Generator
) -> tuple[int, int] | None:
    """(top, left) of a patch that touches no box; None if none was found."""
    height, width = size
    if height > image_size[0] or width > image_size[1]:
        return None
    for _ in range(TRIES):
        top = int(rng.integers(image_size[0] - height + 1))
        left = int(rng.integers(image_size[1] - width + 1))
        if not _touches(np.array([left, top, left + width, top + height]), boxes):
            return top, left
    return None


def _touches(patch: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether a patch has pixels in common with any of the boxes (G, 4)."""
    overlap = np.minimum(patch[2:], boxes[:, 2:]) - np.maximum(patch[:2], boxes[:, :2])
    return bool((overlap > 0).all(axis=1).any())
