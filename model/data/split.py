"""One split of a data set, read once: annotations, image files and their faults."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from model.data.annotations import Annotations, BoxEntry, ImageEntry
from model.data.faults import Fault
from model.data.image_file import ImageFile
from model.data.image_files import MIN_TRAINING_SIDE_PX, read_image_files, size_fault

MIN_BOX_SIDE_PX = 1.0  # thinner boxes are not trained on, as published


@dataclass(frozen=True)
class Split:
    """Images, boxes and classes that check, training and evaluation share.

    Attributes:
        files: by image id; lacks images whose file could not be read.
        file_faults: of image files.
    """

    annotations: Annotations
    files: dict[int, ImageFile]
    file_faults: tuple[Fault, ...]

    @property
    def images(self) -> list[ImageEntry]:
        """The images whose file can be read, in the order of the annotations."""
        return [image for image in self.annotations.images if image.id in self.files]

    def size(self, image_id: int) -> tuple[int, int]:
        """(height, width) of an image as displayed."""
        return self.files[image_id].header.size

    def is_trained_on(self, image_id: int) -> bool:
        """Whether an image is large enough for training."""
        return min(self.size(image_id)) >= MIN_TRAINING_SIDE_PX

    def files_digest(self) -> str:
        """A digest of the contents of all image files, whatever their names."""
        digest = hashlib.blake2b(digest_size=16)
        for image_id in sorted(self.files):
            digest.update(f"{image_id} ".encode() + self.files[image_id].digest)
        return digest.hexdigest()

    def training_box(self, box: BoxEntry) -> tuple[float, float, float, float] | None:
        """The box (x1, y1, x2, y2) clipped to its image, in pixels; None if it is not a target.

        Crowds are not targets, nor, as published, boxes thinner than one pixel or entirely
        outside the image.
        """
        if box.is_crowd or box.image_id not in self.files:
            return None
        return clip_box(box.bbox, self.size(box.image_id))

    def ground_truth(self) -> dict[str, Any]:
        """Images, annotations (crowds included) and categories in COCO's format, as new objects.

        Images and categories whose id is text in the file have it as "text_id". Boxes that no
        detection can match, because they are empty or entirely outside the image, are left out.
        """
        annotations = self.annotations
        images, categories = (
            {number: {"text_id": text} for text, number in numbers.items()}
            for numbers in (annotations.image_numbers, annotations.category_numbers)
        )
        return {
            "images": [
                {"id": image.id, "file_name": image.file_name,
                 "height": self.size(image.id)[0], "width": self.size(image.id)[1],
                 **images.get(image.id, {})}
                for image in self.images
            ],
            "annotations": [
                {"id": box.id, "image_id": box.image_id, "category_id": box.category_id,
                 "bbox": list(box.bbox), "area": box.area, "iscrowd": int(box.is_crowd)}
                for box in annotations.boxes
                if box.image_id in self.files and is_in_image(box.bbox, self.size(box.image_id))
            ],
            "categories": [
                {"id": info.id, "name": info.name, **categories.get(info.id, {})}
                for info in annotations.classes
            ],
        }  # fmt: skip


def open_split(
    annotations: Annotations,
    image_dir: Path,
    *,
    data_dir: Path,
    decode: bool = False,
    known: Mapping[Path, ImageFile | ValueError] = MappingProxyType({}),
) -> Split:
    """Read the header of every image, except of `known` files; with `decode`, all pixels too.

    Files outside of `data_dir` are not read.
    """
    files: dict[int, ImageFile] = {}
    faults: list[Fault] = []
    images = read_image_files(
        annotations.images, image_dir, data_dir=data_dir, decode=decode, known=known
    )
    for image, found in images:
        if isinstance(found, Fault):
            faults.append(found)
            continue
        files[image.id] = found
        if fault := size_fault(image, found):
            faults.append(fault)
    return Split(annotations, files, tuple(faults))


def is_in_image(bbox: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    """Whether a box is not empty and partly inside an image of size (height, width)."""
    (height, width), (x, y, w, h) = size, bbox
    return w > 0 and h > 0 and x < width and y < height and x + w > 0 and y + h > 0


def clip_box(
    bbox: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """(x1, y1, x2, y2) inside an image of size (height, width); None if too thin or outside."""
    (height, width), (x, y, w, h) = size, bbox
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    is_wide = w >= MIN_BOX_SIDE_PX and h >= MIN_BOX_SIDE_PX
    return (x1, y1, x2, y2) if is_wide and x1 < x2 and y1 < y2 else None
