"""Annotations in COCO's format as training samples and as ground truth, for any classes."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from bundle.manifest import ClassInfo
from bundle.preprocess import decode_image
from model.data.transforms import Sample, Transform, to_target

MIN_TRAINING_SIDE_PX = 32  # smaller images are not trained on, as published
MIN_BOX_SIDE_PX = 1.0  # thinner boxes are not trained on, as published
log = logging.getLogger(__name__)


def locate(data_dir: Path, split: str) -> tuple[Path, Path]:
    """The annotation file and the image directory of a split ("train", "val", ...).

    Known layouts, the first that is found: COCO's own `annotations/instances_SPLIT2017.json` (or
    2014, or without a year) with `SPLIT2017/`; `annotations/SPLIT.json`; `SPLIT.json`; and
    `instances.json`, one file for every split. Images lie in `SPLIT2017/`, `images/SPLIT/`,
    `SPLIT/`, `images/` or beside the annotation file.

    Raises:
        ValueError: none is there; the message lists what was looked for.
    """
    names = [f"{split}2017", f"{split}2014", split]
    annotation_files = [
        *(data_dir / "annotations" / f"instances_{name}.json" for name in names),
        data_dir / "annotations" / f"{split}.json",
        data_dir / f"instances_{split}.json",
        data_dir / f"{split}.json",
        data_dir / "annotations" / "instances.json",
        data_dir / "instances.json",
    ]
    annotation_file = next((path for path in annotation_files if path.is_file()), None)
    if annotation_file is None:
        raise ValueError(_not_found(f"annotations of split {split!r}", annotation_files))
    name = annotation_file.stem.removeprefix("instances_")
    folders = list(dict.fromkeys([name, split]))
    image_dirs = [
        *(data_dir / folder for folder in folders),
        *(data_dir / "images" / folder for folder in folders),
        data_dir / "images",
    ]
    image_dir = next((path for path in image_dirs if path.is_dir()), None)
    if image_dir is None:
        raise ValueError(_not_found(f"images of {annotation_file}", image_dirs))
    return annotation_file, image_dir


def read_annotations(annotation_file: Path) -> dict[str, Any]:
    """The file's JSON.

    Raises:
        ValueError: it is missing, no JSON, or lacks the lists images, annotations or categories.
    """
    try:
        content: Any = json.loads(annotation_file.read_bytes())
    except (OSError, ValueError) as error:  # a JSON and an encoding error are ValueErrors
        raise ValueError(f"{annotation_file}: cannot be read as JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f"{annotation_file}: expected COCO's format, an object with the lists images, "
                f"annotations and categories; {key} is missing or no list"
            )
    annotations: dict[str, Any] = content
    return annotations


def read_classes(annotations: dict[str, Any]) -> tuple[ClassInfo, ...]:
    """Classes in the order of the file's categories; the position is the label."""
    return tuple(ClassInfo(id=c["id"], name=c["name"]) for c in annotations["categories"])


def training_box(
    annotation: dict[str, Any], height: int, width: int
) -> tuple[float, float, float, float] | None:
    """The box (x1, y1, x2, y2) clipped to the image, in pixels; None where it is not trained on.

    Dropped, as published: boxes without area (by `area` or by their sides), narrower or lower
    than one pixel, or wholly outside the image.
    """
    x, y, w, h = annotation["bbox"]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    has_area = annotation.get("area", w * h) > 0 and w >= MIN_BOX_SIDE_PX and h >= MIN_BOX_SIDE_PX
    return (x1, y1, x2, y2) if has_area and x1 < x2 and y1 < y2 else None


class CocoDataset(Dataset[tuple[np.ndarray, dict[str, Any]]]):
    """Images and boxes of one COCO annotation file.

    With a transform it is a training set: images with a side under 32 pixels are left out, an
    image without boxes stays, and what the transform draws depends on (seed, epoch, index) alone.
    Without one it holds every image as it is, for evaluation. Crowd annotations are no targets
    but remain in the ground truth.

    Expects a file that `check_dataset` found no fatal fault in.
    """

    def __init__(
        self,
        annotation_file: Path,
        image_dir: Path,
        *,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        self.annotation_file = annotation_file
        self.image_dir = image_dir
        self.transform = transform
        self.seed = seed
        self.epoch = 0
        annotations = read_annotations(annotation_file)
        self.classes = read_classes(annotations)
        images = annotations["images"]
        if transform is not None:
            images = [i for i in images if min(i["height"], i["width"]) >= MIN_TRAINING_SIDE_PX]
        # Arrays, not lists of objects: worker processes then share this memory for good.
        self._image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        self._file_names = np.array([image["file_name"] for image in images], dtype=np.str_)
        self._boxes, self._labels, self._ends = _gather_boxes(annotations, images, self.classes)

    def set_epoch(self, epoch: int) -> None:
        """Choose what the transform draws in the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Image (h, w, 3) uint8 RGB and its target."""
        start = self._ends[index - 1] if index else 0
        boxes = self._boxes[start : self._ends[index]].copy()
        sample = Sample(
            self.read_image(index), boxes, self._labels[start : self._ends[index]].copy()
        )
        if self.transform is not None:
            sample = self.transform(sample, np.random.default_rng([self.seed, self.epoch, index]))
        return sample.image, to_target(sample, self.image_id(index))

    def image_id(self, index: int) -> int:
        """The image's id in the annotation file."""
        return int(self._image_ids[index])

    def read_image(self, index: int) -> np.ndarray:
        """Pixels (h, w, 3) uint8 RGB as displayed, decoded as the service does.

        Raises:
            ValueError: the file is missing or damaged; names it.
        """
        path = self.image_dir / str(self._file_names[index])
        try:
            return decode_image(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"image {self.image_id(index)}, {path}: {error}") from error

    def ground_truth(self) -> dict[str, Any]:
        """The annotation file's content, crowds included; read anew, so it may be changed."""
        return read_annotations(self.annotation_file)


def _gather_boxes(
    annotations: dict[str, Any], images: list[dict[str, Any]], classes: tuple[ClassInfo, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4), labels (N,) in the order of the images, and where each image's end (I,)."""
    label_of = {info.id: label for label, info in enumerate(classes)}
    size_of = {image["id"]: (image["height"], image["width"]) for image in images}
    boxes: dict[int, list[tuple[float, ...]]] = {image_id: [] for image_id in size_of}
    labels: dict[int, list[int]] = {image_id: [] for image_id in size_of}
    for annotation in annotations["annotations"]:
        image_id = annotation["image_id"]
        if annotation.get("iscrowd", 0) or image_id not in size_of:
            continue
        box = training_box(annotation, *size_of[image_id])
        if box is not None:
            boxes[image_id].append(box)
            labels[image_id].append(label_of[annotation["category_id"]])
    return (
        np.array([box for group in boxes.values() for box in group], np.float32).reshape(-1, 4),
        np.array([label for group in labels.values() for label in group], np.int64),
        np.cumsum([len(group) for group in boxes.values()], dtype=np.int64),
    )


def _not_found(what: str, places: list[Path]) -> str:
    return f"no {what}; looked for\n" + "\n".join(f"  {path}" for path in places)
