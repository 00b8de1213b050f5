"""Pascal VOC: an XML file for every image, in one folder or beside the images of every split."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from tqdm import tqdm

from model.data.fields import read_number, read_size
from model.data.formats.image_listing import (
    ImageListing,
    composed,
    find_own_image,
    images_below,
    is_image,
    num_shared_ends,
    sorted_below,
)
from model.data.formats.shapes import around, around_rotated
from model.data.formats.source import (
    ALL,
    SPLIT_NAMES,
    Box,
    Collector,
    Source,
    names_of,
    read_lines,
    split_folder,
    split_folders,
    text_files,
)  # fmt: skip
from model.data.formats.xml_file import read_xml, root_tag, text_of

_SEEN_FILES = 20  # until one is VOC's
_FILES = "*.[xX][mM][lL]"
_IMAGES = "JPEGImages"
_MASKS = "Segmentation"  # how folders of masks begin, which are called like the images
_WRONG_NAME = (
    "correct it, or delete it if the names of the files are right (sed -i '/<filename>/d')"
)
_LISTS = Path("ImageSets", "Main")
_OBJECT_NUMBER = re.compile(r"\s+-?\d+$")  # after the name of an image, as in VOC's own lists


@dataclass(frozen=True)
class VocObject:
    """An object as in its file; corners is (xmin, ymin, xmax, ymax), None where damaged.

    `has_edges`: the tool rotates boxes, so its corners are edges.
    """

    class_name: str
    corners: tuple[float, ...] | None
    is_difficult: str
    place: str
    has_edges: bool


@dataclass(frozen=True)
class VocImage:
    """What one XML file says; size is (height, width), None where it is missing."""

    file: Path
    image_name: str
    size: tuple[int, int] | None
    objects: list[VocObject]


@dataclass(frozen=True)
class VocData:
    """A data set in the format of Pascal VOC. Its classes are sorted by name.

    VOC's own files count pixels from 1 and name the last pixel of a box; most tools write edges,
    counted from 0. A corner at 0 or between pixels, or a tool that rotates boxes, shows that the
    whole set has edges.
    """

    directory: Path

    @property
    def name(self) -> str:
        """The format, and how its corners are counted."""
        counted = "edges from 0" if self._has_edges else "pixels from 1"
        return f"Pascal VOC (corners are {counted})"

    def has(self, split: str) -> bool:
        """Whether there is a list in ImageSets/Main or a folder of the split."""
        if split == ALL:
            return not any(self.has(name) for name in SPLIT_NAMES)
        return self._list(split) is not None or self._folder(split) is not None

    def looked_for(self, split: str) -> str:
        """The list, and the folder."""
        return f"{_LISTS.as_posix()}/{split}.txt, {split}/"

    def read(self, split: str) -> Source:
        """The images of a split, whether they have objects or not."""
        listing = ImageListing(path for path in images_below(self.directory) if not _is_mask(path))
        class_names = dict(enumerate(self._class_names))
        collector = Collector(self.directory, image_dir=self.directory, class_names=class_names)
        for image in self._images_of(split, collector):
            place = image.file.relative_to(self.directory).as_posix()
            paths = _usual(find_own_image(listing, image.file, image_name=image.image_name))
            image_id = collector.add_found(
                paths, image.image_name, size=image.size, place=place,
                said="filename", remedy=_WRONG_NAME,
            )  # fmt: skip
            for found in image.objects:
                collector.add_box(
                    image_id, found.class_name, bbox=self._box(found.corners),
                    place=found.place, is_crowd=found.is_difficult,
                )  # fmt: skip
        return collector.source()

    @cached_property
    def _images(self) -> dict[Path, VocImage]:
        """All files of all splits, since classes and counting are common to them."""
        files = sorted_below(self.directory, ".xml")
        bar = tqdm(files, desc="reading annotations", unit=" files", leave=False)
        return {file: _read_image(file, self.directory) for file in bar}

    @cached_property
    def _class_names(self) -> list[str]:
        return sorted({o.class_name for i in self._images.values() for o in i.objects} - {""})

    @cached_property
    def _has_edges(self) -> bool:
        objects = [found for image in self._images.values() for found in image.objects]
        corners = [value for found in objects for value in found.corners or ()]
        return any(found.has_edges for found in objects) or any(
            value < 1 or value != int(value) for value in corners
        )

    def _box(self, corners: tuple[float, ...] | None) -> Any:
        if corners is None:
            return None
        x1, y1, x2, y2 = corners
        first = 0 if self._has_edges else 1
        return x1 - first, y1 - first, x2 - x1 + first, y2 - y1 + first

    def _images_of(self, split: str, collector: Collector) -> list[VocImage]:
        if split == ALL:
            return list(self._images.values())
        names, folder = self._list(split), self._folder(split)
        if names is None:
            return [i for i in self._images.values() if folder and folder in i.file.parents]
        by_stem: dict[str, list[VocImage]] = {}
        for image in self._images.values():
            by_stem.setdefault(composed(image.file.stem), []).append(image)
        images: dict[Path, VocImage] = {}
        for line in read_lines(names):
            found = _nearest(_listed(line, by_stem), Path(line).parent)
            if len(found) == 1:
                images[found[0].file] = found[0]
            elif found:
                several = ", ".join(str(image.file) for image in found)
                message = f"{names} lists {line}, which may be {several}: write its folder, too"
                collector.add_fault("ambiguous-name", message)
            else:
                message = f"{names} lists {line}, which has no XML file"
                collector.add_fault("missing-annotation", message)
        return list(images.values())

    def _list(self, split: str) -> Path | None:
        lists = text_files(self.directory / _LISTS)
        return next((lists[name] for name in names_of(split) if name in lists), None)

    def _folder(self, split: str) -> Path | None:
        folder = split_folder(self.directory, split)
        if folder is None and (self.directory / "Annotations").is_dir():
            folder = split_folder(self.directory / "Annotations", split)
        return folder


def _usual(paths: list[Path]) -> list[Path]:
    """Of several images of one name, the one in VOC's own folder, if there is one."""
    usual = [path for path in paths if path.parent.name == _IMAGES]
    return usual if len(usual) == 1 and len({path.stem for path in paths}) == 1 else paths


def _is_mask(path: Path) -> bool:
    return path.parent.name.startswith(_MASKS)


def _listed(line: str, by_stem: dict[str, list[VocImage]]) -> list[VocImage]:
    """The images that a line may name: all of it, or without an object's number, with a suffix."""
    for name in (composed(line), _OBJECT_NUMBER.sub("", composed(line))):
        last = Path(name.replace("\\", "/"))
        for key in (last.name, last.stem if is_image(last) else None):
            if key in by_stem:
                return by_stem[key]
    return []


def _nearest(images: list[VocImage], folder: Path) -> list[VocImage]:
    """Those of them whose folders end like `folder` in the most places."""
    shared = [num_shared_ends(image.file.parent.parts, folder.parts) for image in images]
    return [image for image, n in zip(images, shared, strict=True) if n == max(shared)]


def find(data_dir: Path) -> VocData | None:
    """The data set in a folder, if one of the first XML files in it is VOC's."""
    places = [data_dir / "Annotations", data_dir]
    folders = split_folders(data_dir)
    if {"train", "val"} & folders.keys():
        places += folders.values()
    for place in (path for path in places if path.is_dir()):
        files = islice(chain(place.glob(_FILES), place.glob(f"*/{_FILES}")), _SEEN_FILES)
        if any(root_tag(file) == "annotation" for file in files if file.name[0] != "."):
            return VocData(data_dir)
    return None


def _read_image(file: Path, directory: Path) -> VocImage:
    root = read_xml(file)
    if root.tag != "annotation":
        raise ValueError(f"{file}: expected VOC's element annotation, found {root.tag}")
    place = file.relative_to(directory).as_posix()
    return VocImage(
        file=file,
        image_name=text_of(root, "filename") or text_of(root, "path") or file.stem,
        size=read_size(text_of(root, "size/height"), text_of(root, "size/width")),
        objects=[
            VocObject(
                class_name=text_of(found, "name"),
                corners=_corners(found),
                is_difficult=text_of(found, "difficult"),
                place=f"{place}, object {number}",
                has_edges=found.find("robndbox") is not None or _rotation(found) is not None,
            )
            for number, found in enumerate(root.findall("object"), start=1)
        ],
    )


def _corners(found: Element) -> tuple[float, ...] | None:
    """The corners of the object itself, not of its parts; of its polygon if it has no box."""
    names = ("xmin", "ymin", "xmax", "ymax")
    values = [read_number(text_of(found, f"bndbox/{name}")) for name in names]
    corners = tuple(value for value in values if value is not None)
    if len(corners) == 4:
        x1, y1, x2, y2 = corners
        degrees = _rotation(found) or 0.0
        return (
            _to_corners(around_rotated((x1, y1, x2 - x1, y2 - y1), degrees)) if degrees else corners
        )
    if (rotated := _rotated_box(found)) is not None:
        return _to_corners(rotated)
    points = [
        (read_number(text_of(found, f"polygon/x{n}")), read_number(text_of(found, f"polygon/y{n}")))
        for n in range(1, 1 + len(found.findall("polygon/*")) // 2)
    ]
    known = [(x, y) for x, y in points if x is not None and y is not None]
    if not known or found.find("bndbox") is not None:
        return None
    return _to_corners(around(known))


def _to_corners(box: Box) -> tuple[float, ...]:
    x, y, w, h = box
    return x, y, x + w, y + h


def _rotation(found: Element) -> float | None:
    """The degrees that CVAT writes as an attribute beside the corners before the rotation."""
    for attribute in found.iterfind("attributes/attribute"):
        if text_of(attribute, "name") == "rotation":
            return read_number(text_of(attribute, "value"))
    return None


def _rotated_box(found: Element) -> Box | None:
    """The box around roLabelImg's rotated box, whose angle is in radians."""
    names = ("cx", "cy", "w", "h", "angle")
    values = [read_number(text_of(found, f"robndbox/{name}")) for name in names]
    known = [value for value in values if value is not None]
    if len(known) < len(names):
        return None
    cx, cy, w, h, radians = known
    return around_rotated((cx - w / 2, cy - h / 2, w, h), math.degrees(radians))
