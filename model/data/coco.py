"""A data set in COCO format as training samples and as ground truth, for any classes."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from bundle.preprocess import decode_image
from model.data.image_file import Image, decode_file
from model.data.mixing import Mix
from model.data.split import Split
from model.data.transforms import Sample, Transform, to_target


class CocoDataset(Dataset[tuple[np.ndarray, dict[str, Any]]]):
    """Images and boxes of one split.

    With a transform it is a training set: images with a side under 32 pixels are left out, images
    without boxes stay, and the transform's random draws depend only on (seed, epoch, index). `mix`
    makes a sample of several images before that. Images may be decoded at a fraction of their size
    if no side gets shorter than `least_side`. Without a transform it holds every image
    unchanged, for evaluation. Crowd annotations are not targets, but remain in the ground truth.

    The split must have no fatal fault (see `check_split`).
    """

    def __init__(
        self,
        split: Split,
        *,
        transform: Transform | None = None,
        mix: Mix | None = None,
        seed: int = 0,
        least_side: int | None = None,
    ) -> None:
        self.classes = split.annotations.classes
        self.transform = transform
        self.mix = mix
        self.seed = seed
        self._least_side = least_side
        self.epoch = 0
        self._split = split
        image_ids = [image.id for image in split.images]
        if transform is not None:
            image_ids = [i for i in image_ids if split.is_trained_on(i)]
        # (I, 2), height and width as displayed, before the transform.
        self.sizes = np.array([split.size(image_id) for image_id in image_ids]).reshape(-1, 2)
        self.is_portrait = self.sizes[:, 0] > self.sizes[:, 1]
        # Arrays, not lists of objects, so that worker processes keep sharing this memory.
        self._image_ids = np.array(image_ids, dtype=np.int64)
        self._paths = np.array([str(split.files[i].path) for i in image_ids], dtype=np.str_)
        self._boxes, self._labels, self._ends = _gather_boxes(split, image_ids)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides what the transform draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Image (h, w, 3) uint8 RGB and its target."""
        sample = self._sample(index)
        if self.transform is not None:
            rng = np.random.default_rng([self.seed, self.epoch, index])
            if self.mix is not None:
                sample = self.mix(sample, self._any_sample, rng)
            sample = self.transform(sample, rng)
        return sample.image, to_target(sample, self.image_id(index))

    def _sample(self, index: int) -> Sample:
        start = self._ends[index - 1] if index else 0
        boxes = self._boxes[start : self._ends[index]].copy()
        labels = self._labels[start : self._ends[index]].copy()
        image = self.read_image(index)
        # The power of two that it was divided by; rounding up lets it reach beyond its last pixels.
        factor = 2 ** round(math.log2(max(self.sizes[index]) / max(image.shape[:2])))
        return Sample(image, boxes / np.float32(factor), labels)

    def _any_sample(self, rng: np.random.Generator) -> Sample:
        return self._sample(int(rng.integers(len(self))))

    def image_id(self, index: int) -> int:
        """The image's id in the annotation file."""
        return int(self._image_ids[index])

    def read_image(self, index: int) -> np.ndarray:
        """Pixels (h, w, 3) uint8 RGB as displayed, decoded as the service does, but for their size.

        Raises:
            ValueError: the file is missing or damaged; names it.
        """
        return self.read_with(partial(decode_image, least_side=self._least_side), index)

    def read_with(self, decode: Callable[..., Image], index: int) -> Image:
        """What another decoder makes of the image's file.

        Raises:
            ValueError: as `read_image`.
        """
        try:
            return decode_file(Path(self._paths[index]), decode)
        except ValueError as error:
            raise ValueError(f"image {self.image_id(index)}, {error}") from error

    def ground_truth(self) -> dict[str, Any]:
        """The split in COCO's format, crowds included; a new copy, which may be changed."""
        return self._split.ground_truth()


def _gather_boxes(split: Split, image_ids: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4) and labels (N,) in the order of the images, and where each image ends (I,)."""
    label_of = {info.id: label for label, info in enumerate(split.annotations.classes)}
    boxes: dict[int, list[tuple[float, ...]]] = {image_id: [] for image_id in image_ids}
    labels: dict[int, list[int]] = {image_id: [] for image_id in image_ids}
    for entry in split.annotations.boxes:
        box = split.training_box(entry)
        if box is not None and entry.image_id in boxes:
            boxes[entry.image_id].append(box)
            labels[entry.image_id].append(label_of[entry.category_id])
    return (
        np.array([box for group in boxes.values() for box in group], np.float32).reshape(-1, 4),
        np.array([label for group in labels.values() for label in group], np.int64),
        np.cumsum([len(group) for group in boxes.values()], dtype=np.int64),
    )
