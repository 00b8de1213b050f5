"""What is in a split, in numbers: images, classes, sizes and shapes of boxes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bundle.terminal import shortened
from model.data.split import Split, is_in_image

SMALL_PX, LARGE_PX = 32, 96  # COCO's limits, of a square with the area of the box
# Lower limit -> what is from there to the next one.
_SIDES_PX = {0: "under 8", 8: "8 to 16", 16: "16 to 32", 32: "32 to 64", 64: "64 to 96",
             96: "96 to 128", 128: "128 to 256", 256: "over 256"}  # fmt: skip
_RATIOS = {0: "under 1:4", 1 / 4: "1:4 to 1:2", 1 / 2: "1:2 to 4:5", 4 / 5: "4:5 to 5:4",
           5 / 4: "5:4 to 2:1", 2: "2:1 to 4:1", 4: "over 4:1"}  # fmt: skip
_OBJECTS = {0: "none", 1: "1", 2: "2 to 4", 5: "5 to 9", 10: "10 to 19", 20: "20 to 49",
            50: "50 to 99", 100: "100 and more"}  # fmt: skip
_SHOWN_CLASSES = 6


@dataclass(frozen=True)
class Statistics:
    """The content of a split; boxes without crowds.

    Attributes:
        image_sizes, box_sizes: (I, 2) and (N, 2), height and width in pixels.
        areas: (N,) as stated, in COCO's files that of the mask.
        objects: (I,) boxes in each image.
        classes: boxes of each class by name, the most common first.
    """

    image_sizes: np.ndarray
    box_sizes: np.ndarray
    areas: np.ndarray
    objects: np.ndarray
    classes: dict[str, int]
    num_crowds: int

    @classmethod
    def of(cls, split: Split) -> "Statistics":
        """Count what is in a split: images that can be read, boxes that can be evaluated."""
        sizes = {image.id: split.size(image.id) for image in split.images}
        names = {info.id: info.name for info in split.annotations.classes}
        # A category that cannot be read is a fault, and then its boxes have no class.
        found = [box for box in split.annotations.boxes
                 if box.image_id in sizes and box.category_id in names
                 and is_in_image(box.bbox, sizes[box.image_id])]  # fmt: skip
        boxes = [box for box in found if not box.is_crowd]
        in_image = Counter(box.image_id for box in boxes)
        of_class = Counter(dict.fromkeys(names.values(), 0))
        of_class.update(names[box.category_id] for box in boxes)
        return cls(
            np.array(list(sizes.values())).reshape(-1, 2),
            np.array([box.bbox[:1:-1] for box in boxes], np.float64).reshape(-1, 2),
            np.array([box.area for box in boxes], np.float64),
            np.array([in_image[image_id] for image_id in sizes], np.int64),
            dict(of_class.most_common()),
            len(found) - len(boxes),
        )

    @property
    def ratios(self) -> np.ndarray:
        """(N,) width / height of each box."""
        ratios: np.ndarray = self.box_sizes[:, 1] / np.maximum(self.box_sizes[:, 0], 1e-9)
        return ratios

    def tables(self) -> dict[str, dict[str, int]]:
        """Counts by title: of the boxes by class, by size and by shape, of images by objects."""
        return {
            "Boxes by class": self.classes,
            "Boxes by size: side in pixels of a square with their area": _count_between(
                np.sqrt(self.areas), _SIDES_PX
            ),
            "Boxes by width / height": _count_between(self.ratios, _RATIOS),
            "Images by number of objects": _count_between(self.objects, _OBJECTS),
        }


def describe_content(found: Statistics) -> Iterator[str]:
    """Up to four lines: images, classes, sizes of boxes, their shapes and number in an image."""
    if not len(found.image_sizes):
        yield "no images"
        return
    heights, widths = found.image_sizes.T
    num_empty = int((found.objects == 0).sum())
    yield (
        f"images: {len(found.image_sizes)}, {_range(widths)} pixels wide, {_range(heights)} high, "
        f"{num_empty} without objects; crowds: {found.num_crowds}"
    )
    if not len(found.areas):
        yield f"classes: {len(found.classes)}; no boxes"
        return
    yield f"classes: {len(found.classes)}; boxes: {len(found.areas)}: {_common(found.classes)}"
    sides = np.sqrt(found.areas)
    small, large = (sides < SMALL_PX).mean(), (sides >= LARGE_PX).mean()
    yield (
        f"sides of boxes (roots of their areas): {_range(sides)} pixels, half under "
        f"{np.median(sides):.0f}; {small:.0%} small, {1 - small - large:.0%} medium, "
        f"{large:.0%} large"
    )
    yield (
        f"width / height of boxes: {_range(found.ratios, digits=2)}; objects in an image: "
        f"{_range(found.objects)}, {found.objects.mean():.1f} on average"
    )


def _common(classes: Mapping[str, int]) -> str:
    """Classes with their number of boxes; if there are many, those with the most and the fewest."""
    shown = [f"{shortened(name)} {count}" for name, count in classes.items()]
    if len(shown) > _SHOWN_CLASSES:
        half = _SHOWN_CLASSES // 2
        shown = [*shown[:half], "...", *shown[-half:]]
    return ", ".join(shown)


def _count_between(values: np.ndarray, names: dict[int, str] | dict[float, str]) -> dict[str, int]:
    """How many values are at or above each limit, but below the next."""
    numbers = np.digitize(values, [*names][1:])
    counts = np.bincount(numbers, minlength=len(names)).tolist()
    return dict(zip(names.values(), counts, strict=True))


def _range(values: np.ndarray, digits: int = 0) -> str:
    """The least and the largest value, or the only one."""
    least, most = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return least if least == most else f"{least} to {most}"
