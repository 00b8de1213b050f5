"""labelme: a JSON file for every image, beside it or in a folder of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from math import dist
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bundle.json_file import read_json, starts_with
from model.data.fields import read_number, read_size
from model.data.formats.image_listing import (
    ImageListing,
    find_own_image,
    images_below,
    sorted_below,
)
from model.data.formats.shapes import Point, around, around_boxes, around_ellipse
from model.data.formats.source import (
    ALL,
    SPLIT_NAMES,
    Box,
    Collector,
    DrawnBox,
    Source,
    read_lines,
    split_folder,
)  # fmt: skip

_NO_CLASSES = ("__ignore__", "_background_")  # in labels.txt
_SEEN_FILES = 20
_KEYS = ('"shapes"', '"imagePath"', '"imageData"')  # the last one may keep the others far away


@dataclass(frozen=True)
class LabelmeImage:
    """What one file says; size is (height, width), None where it is missing.

    An object is one shape, or several in a group.
    """

    file: Path
    image_name: str
    size: tuple[int, int] | None
    objects: list[DrawnBox]
    left_out: list[str]
    num_joined: int  # shapes that are part of an object with others
    has_pixels: bool  # in the file itself


@dataclass(frozen=True)
class LabelmeData:
    """A data set of labelme. Its classes are in the order of labels.txt, else sorted by name."""

    directory: Path
    name: str = "labelme"

    def has(self, split: str) -> bool:
        """Whether there is a folder of the split."""
        if split == ALL:
            return not any(self.has(name) for name in SPLIT_NAMES)
        return split_folder(self.directory, split) is not None

    def looked_for(self, split: str) -> str:
        """The folder."""
        return f"the folder {split}/"

    def read(self, split: str) -> Source:
        """The annotated images of a split; those without a file are left out."""
        folder = self.directory if split == ALL else split_folder(self.directory, split)
        assert folder is not None, "the caller asks `has` before"
        class_names = dict(enumerate(self._class_names))
        collector = Collector(self.directory, image_dir=self.directory, class_names=class_names)
        listing = ImageListing(images_below(self.directory))
        images = [image for image in self._images if folder in image.file.parents]
        self._note_joined(collector, images)
        self._note_others(collector, folder, known={image.file for image in images})
        for image in images:
            place = image.file.relative_to(self.directory).as_posix()
            paths = find_own_image(listing, image.file, image_name=image.image_name)
            remedy = "correct imagePath, or the name of the file"
            image_id = collector.add_found(
                paths, image.image_name, size=image.size, place=place,
                said="imagePath", remedy=remedy,
            )  # fmt: skip
            if not paths and image.has_pixels:
                message = f"{place} holds its image itself, as imageData: write it out as a file"
                collector.add_fault("image-data", message, image_id=image_id)
            for what in image.left_out:
                collector.leave_out(f"shapes of type {what}")
            for found in image.objects:
                where = f"{place}, {found.place}"
                collector.add_box(image_id, found.label, bbox=found.box, place=where)
        return collector.source()

    def _note_joined(self, collector: Collector, images: Sequence[LabelmeImage]) -> None:
        if joined := [image for image in images if image.num_joined]:
            message = (
                f"shapes that are one object with others, by class and group_id: "
                f"{sum(image.num_joined for image in joined)}, such as in {joined[0].file.name}"
            )
            collector.add_note("joined-shapes", message)

    def _note_others(self, collector: Collector, folder: Path, *, known: set[Path]) -> None:
        if others := [file for file in sorted_below(folder, ".json") if file not in known]:
            message = (
                f"left out: JSON files that are empty or not labelme's: {len(others)}, such as "
                f"{others[0].name}"
            )
            collector.add_note("left-out", message)

    @cached_property
    def _images(self) -> list[LabelmeImage]:
        """All files of all splits, since the classes are common to them."""
        files = [file for file in sorted_below(self.directory, ".json") if _is_labelme(file)]
        bar = tqdm(files, desc="reading annotations", unit=" files", leave=False)
        return [_read_image(file) for file in bar]

    @cached_property
    def _class_names(self) -> list[str]:
        file = self.directory / "labels.txt"
        if file.is_file():
            names = dict.fromkeys(read_lines(file))
            return [name for name in names if name not in _NO_CLASSES]
        return sorted({found.label for i in self._images for found in i.objects} - {""})


def find(data_dir: Path) -> LabelmeData | None:
    """The data set in a folder, if one of the first JSON files in it is labelme's."""
    places = (data_dir.glob(f"{folders}*.[jJ][sS][oO][nN]") for folders in ("", "*/", "*/*/"))
    files = islice(chain.from_iterable(places), _SEEN_FILES)
    return LabelmeData(data_dir) if any(_is_labelme(file) for file in files) else None


def _is_labelme(file: Path) -> bool:
    return starts_with(file, "{", *_KEYS)


def _read_image(file: Path) -> LabelmeImage:
    content = read_json(file.read_bytes(), file)
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError(f"{file}: expected labelme's list of shapes")
    groups: dict[tuple[str, object], list[tuple[int, dict[str, Any]]]] = {}
    left_out = []
    for number, shape in enumerate(shapes, start=1):
        kind = _kind(shape)
        if kind not in _BOXES:
            left_out.append(kind)
            continue
        group = shape.get("group_id")
        key = f"shape {number}" if group is None else repr(group)
        groups.setdefault((str(shape.get("label") or ""), key), []).append((number, shape))
    return LabelmeImage(
        file=file,
        image_name=str(content.get("imagePath") or file.stem),
        size=read_size(content.get("imageHeight"), content.get("imageWidth")),
        objects=[_object(label, shapes) for (label, _), shapes in groups.items()],
        left_out=left_out,
        num_joined=sum(len(group) for group in groups.values() if len(group) > 1),
        has_pixels=bool(content.get("imageData")),
    )


def _kind(shape: dict[str, Any]) -> str:
    return str(shape.get("shape_type", "polygon"))  # old versions have polygons only


def _object(label: str, shapes: Sequence[tuple[int, dict[str, Any]]]) -> DrawnBox:
    boxes = [_box(shape) for _, shape in shapes]
    known = [box for box in boxes if box is not None]
    numbers = ", ".join(str(number) for number, _ in shapes)
    box = around_boxes(known) if len(known) == len(boxes) else None
    return DrawnBox(label, box, f"shape {numbers}")


def _box(shape: dict[str, Any]) -> Box | None:
    try:
        points = [(read_number(x), read_number(y)) for x, y in shape["points"]]
        known = [(x, y) for x, y in points if x is not None and y is not None]
        return _BOXES[_kind(shape)](known) if known == points else None
    except (KeyError, TypeError, ValueError):
        return None


def _circle(points: list[Point]) -> Box:
    centre, edge = points
    radius = dist(centre, edge)
    return around_ellipse(centre, (radius, radius))


def _mask(points: list[Point]) -> Box:
    """The corners are the first and last pixel."""
    x, y, w, h = around(points)
    return x, y, w + 1, h + 1


_BOXES = {
    "rectangle": around, "polygon": around, "circle": _circle, "mask": _mask,
    "oriented_rectangle": around, "rotation": around, "quadrilateral": around,  # X-AnyLabeling's
}  # fmt: skip
