"""CVAT's own format, "CVAT for images 1.1": one annotations.xml, for the whole set or a split."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree.ElementTree import Element

from tqdm import tqdm

from model.data.fields import read_number, read_size
from model.data.formats.image_listing import ImageListing, images_below
from model.data.formats.shapes import around, around_ellipse, around_rotated
from model.data.formats.source import (
    ALL,
    SPLIT_NAMES,
    Box,
    Collector,
    DrawnBox,
    Source,
    names_of,
    other_files,
    split_folders,
)  # fmt: skip
from model.data.formats.xml_file import elements, root_tag, text_of

FILE = "annotations.xml"
_PLURALS = {"points": "sets of points", "mask": "masks", "cuboid": "cuboids", "tag": "tags",
            "polyline": "polylines", "skeleton": "skeletons"}  # fmt: skip


@dataclass(frozen=True)
class CvatImage:
    """An image of the file; size is (height, width), None where it is missing."""

    name: str
    subset: str
    size: tuple[int, int] | None
    shapes: list[DrawnBox]
    left_out: list[str]


@dataclass(frozen=True)
class CvatData:
    """One or several files of CVAT; the classes are in the order of the task or project.

    Attributes:
        files: by split, or the only one.
    """

    directory: Path
    files: dict[str, Path]
    name: str = f"CVAT ({FILE})"

    def has(self, split: str) -> bool:
        """Whether there is a file of the split, or the common file has it as a subset."""
        if ALL not in self.files:
            return split in self.files
        if split == ALL:
            return not any(self.has(name) for name in SPLIT_NAMES)
        images = self._contents[self.files[ALL]][1]
        return any(image.subset.lower() in names_of(split) for image in images)

    def looked_for(self, split: str) -> str:
        """The subset, and the folder."""
        return f"images of the subset {split}, {split}/{FILE}"

    def read(self, split: str) -> Source:
        """The images of a split with the boxes around their shapes."""
        file = self.files.get(split, self.files.get(ALL))
        assert file is not None, "the caller asks `has` before"
        images = self._contents[file][1]
        if split not in self.files:
            images = [image for image in images if image.subset.lower() in names_of(split)]
        listing = ImageListing(images_below(file.parent))
        class_names = dict(enumerate(self._class_names))
        collector = Collector(file, image_dir=file.parent, class_names=class_names)
        others = [path for path in file.parent.glob("*.xml") if path != file and _is_cvat(path)]
        collector.add(other_files(file, sorted(others), split=split))
        for image in images:
            stated = f"{image.subset}/{image.name}" if image.subset else image.name
            place = f"image {image.name}"
            paths = listing.find(stated)
            image_id = collector.add_found(
                paths, image.name, size=image.size, place=place,
                said="name", remedy="keep one of them",
            )  # fmt: skip
            for what in image.left_out:
                collector.leave_out(_PLURALS.get(what, what))
            for shape in image.shapes:
                collector.add_box(image_id, shape.label, bbox=shape.box, place=shape.place)
        return collector.source()

    @property
    def _class_names(self) -> list[str]:
        """The labels of all files, so that the splits agree; those in use if none are listed."""
        contents = self._contents.values()
        listed = dict.fromkeys(name for names, _ in contents for name in names)
        used = {shape.label for _, images in contents for i in images for shape in i.shapes} - {""}
        return list(listed) or sorted(used)

    @cached_property
    def _contents(self) -> dict[Path, tuple[list[str], list[CvatImage]]]:
        return {file: _read_file(file) for file in self.files.values()}


def find(data_dir: Path) -> CvatData | None:
    """The data set in a folder, if its annotations.xml, or those of its splits, are CVAT's."""
    files = {name: folder / FILE for name, folder in split_folders(data_dir).items()}
    files = {name: file for name, file in files.items() if _is_cvat(file)}
    if _is_cvat(data_dir / FILE):
        files = {ALL: data_dir / FILE}
    elif not files and len(found := [f for f in data_dir.glob("*.xml") if _is_cvat(f)]) == 1:
        return CvatData(data_dir, {ALL: found[0]}, f"CVAT ({found[0].name})")
    return CvatData(data_dir, files) if files else None


def _is_cvat(file: Path) -> bool:
    return file.is_file() and root_tag(file) == "annotations"


def _read_file(file: Path) -> tuple[list[str], list[CvatImage]]:
    """The names of the labels, in order, and the images."""
    names: list[str] = []
    images: list[CvatImage] = []
    children = elements(file, "meta", "image", "track")
    for element in tqdm(children, desc=f"reading {file.name}", unit=" images", leave=False):
        if element.tag == "track":
            raise ValueError(
                f"{file}: has tracks, as CVAT writes them for video; export the task again as "
                '"CVAT for images 1.1"'
            )
        if element.tag == "meta":
            labels = element.iterfind(".//labels/label")
            # Those with a parent are points of a skeleton.
            names += [text_of(label, "name") for label in labels if label.find("parent") is None]
        else:
            images.append(_read_image(element))
    return [name for name in dict.fromkeys(names) if name], images


def _read_image(element: Element) -> CvatImage:
    name = element.get("name", "")
    return CvatImage(
        name=name,
        subset=element.get("subset", ""),
        size=read_size(element.get("height"), element.get("width")),
        shapes=list(_shapes(element, name)),
        left_out=[child.tag for child in element if child.tag not in _BOXES],
    )


def _shapes(image: Element, name: str) -> Iterator[DrawnBox]:
    for number, child in enumerate(image, start=1):
        if child.tag in _BOXES:
            place = f"image {name}, shape {number} ({child.tag})"
            try:
                box = _BOXES[child.tag](child)
            except ValueError:
                box = None
            yield DrawnBox(child.get("label", ""), box, place)


def _number(shape: Element, key: str, default: str | None = None) -> float:
    number = read_number(shape.get(key, default))
    if number is None:
        raise ValueError(f"no number as {key}")
    return number


def _box(shape: Element) -> Box:
    x, y, right, bottom = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    return around_rotated((x, y, right - x, bottom - y), _number(shape, "rotation", "0"))


def _polygon(shape: Element) -> Box:
    points = [point.split(",") for point in shape.get("points", "").split(";")]
    return around([(float(x), float(y)) for x, y in points])


def _ellipse(shape: Element) -> Box:
    cx, cy, rx, ry = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
    return around_ellipse((cx, cy), (rx, ry), degrees=_number(shape, "rotation", "0"))


def _mask(shape: Element) -> Box:
    x, y, w, h = (_number(shape, key) for key in ("left", "top", "width", "height"))
    return x, y, w, h


_BOXES = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}
