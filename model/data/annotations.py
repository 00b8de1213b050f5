"""The only parser of annotations; the readers of all formats pass them on as COCO's lists.

Tools write the same fact in many ways: `iscrowd` as null or "0", `area` as 0, ids as text, sizes as
floats or not at all. A value that can mean only one thing is accepted and noted; any other is a
fault whose message shows the value.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.manifest import ClassInfo
from model.data.faults import Fault, shown
from model.data.fields import is_unicode, read_box, read_flag, read_id, read_number, read_size
from model.data.formats.shapes import around_rotated
from model.data.formats.source import Source
from model.data.segmentation import box_of

_SECTIONS = ("images", "annotations", "categories")
# Areas of masks are counted in whole pixels and rounded, so they may exceed their box a little.
_AREA_EXCESS, _AREA_EXCESS_PX = 0.01, 1.0
_FORMS = {
    "image_id": "the id of an image in the list images",
    "category_id": "the id of a category in the list categories",
    "bbox": "four finite numbers [x, y, width, height] in pixels",
    "iscrowd": "0 or 1",
    "file_name": "the name of the image's file",
    "id": "a whole number or text",
    "name": "text",
}


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of the file; size is (height, width) as stated, or None."""

    id: int
    file_name: str
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class BoxEntry:
    """One annotation of the file; bbox is (x, y, width, height) in pixels, all finite."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    stated_area: float | None  # None unless positive
    is_crowd: bool

    @property
    def area(self) -> float:
        """The stated area in pixels (in COCO's files, of the mask), else width x height.

        A stated area that is larger than the box is ignored.
        """
        of_box = self.bbox[2] * self.bbox[3]
        if self.stated_area is None:
            return of_box
        largest = of_box * (1 + _AREA_EXCESS) + _AREA_EXCESS_PX
        return self.stated_area if self.stated_area <= largest else of_box


@dataclass(frozen=True)
class Annotations:
    """The annotations of a split.

    Attributes:
        file: the file they come from, or the folder of files.
        classes: in the order of the file's categories; the position is the label.
        faults: entries that could not be read (fatal, and missing from the lists), and notes on
            how others were read.
        sha256: of the content of the files.
        image_numbers, category_numbers: the number used for every id that is text in the file.
    """

    file: Path
    images: tuple[ImageEntry, ...]
    boxes: tuple[BoxEntry, ...]
    classes: tuple[ClassInfo, ...]
    faults: tuple[Fault, ...]
    sha256: str
    image_numbers: Mapping[str, int] = field(default_factory=dict)
    category_numbers: Mapping[str, int] = field(default_factory=dict)


def parse_annotations(source: Source) -> Annotations:
    """The content of a split, normalised.

    Raises:
        ValueError: it lacks the list images, annotations or categories.
    """
    content = source.content
    for section in _SECTIONS:
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            found = f"{section} is missing or not a list"
            found = found if isinstance(content, dict) else f"the file holds {shown(content)}"
            raise ValueError(
                f"{source.file}: expected COCO's format, an object with the lists images, "
                f"annotations and categories; {found}"
            )
    reader = _Reader(content, source.places, sizes_are_stated=not source.image_files)
    images, boxes = tuple(reader.images()), tuple(reader.boxes())
    classes = tuple(reader.classes(used_ids={box.category_id for box in boxes}))
    faults = (*source.faults, *reader.faults, *reader.notes())
    numbers = reader.image_numbers, reader.category_numbers
    return Annotations(source.file, images, boxes, classes, faults, source.sha256, *numbers)


class _Unreadable(Exception):
    """The entry lacks a field, which has been reported."""


@dataclass
class _Reader:
    """Reads the lists of one file and collects faults and notes."""

    content: dict[str, list[Any]]
    places: Mapping[str, Sequence[str]]
    sizes_are_stated: bool  # else the format has none: they were read from the files
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._notes: dict[str, tuple[int, str]] = {}  # how often, and where first
        for section in _SECTIONS:
            self._check_entries(section)
        self._image_ids = self._number("images")
        self._category_ids = self._number("categories")
        known = (_whole(entry.get("id")) for _, entry in self._entries("annotations"))
        self._largest_annotation_id = max((n for n in known if n is not None), default=0)

    def images(self) -> Iterator[ImageEntry]:
        """The images that have an id and a file name."""
        for where, entry in self._entries("images"):
            try:
                yield ImageEntry(
                    self._known(where, entry, "id", self._image_ids),
                    self._text(where, entry, "file_name"),
                    self._size(where, entry),
                )
            except _Unreadable:
                continue

    def boxes(self) -> Iterator[BoxEntry]:
        """The annotations with a box, a known image and a known category."""
        for position, (where, entry) in enumerate(self._entries("annotations"), start=1):
            try:
                box = BoxEntry(
                    self._annotation_id(where, entry, position),
                    self._known(where, entry, "image_id", self._image_ids),
                    self._known(where, entry, "category_id", self._category_ids),
                    self._box(where, entry),
                    self._area(where, entry),
                    self._is_crowd(where, entry),
                )
            except _Unreadable:
                continue
            if box.stated_area not in (None, box.area):
                what = "areas are larger than their boxes: using width x height"
                self._note(what, where, entry, "area", "bbox")
            yield box

    def classes(self, used_ids: set[int]) -> Iterator[ClassInfo]:
        """The categories, without the parent category that Roboflow adds as a placeholder."""
        placeholder = _placeholder([entry for _, entry in self._entries("categories")])
        for where, entry in self._entries("categories"):
            try:
                category_id = self._known(where, entry, "id", self._category_ids)
                name = self._text(where, entry, "name")
            except _Unreadable:
                continue
            if entry is placeholder and category_id not in used_ids:
                message = (
                    f"category {category_id} {name} has no box and is the parent of all others, as "
                    "in Roboflow's exports: it does not become a class of the model"
                )
                self.faults.append(Fault("placeholder-class", None, None, message, fatal=False))
            else:
                yield ClassInfo(id=category_id, name=name)

    @property
    def image_numbers(self) -> dict[str, int]:
        """The number of every image whose id is text."""
        return _of_text(self._image_ids)

    @property
    def category_numbers(self) -> dict[str, int]:
        """The number of every category whose id is text."""
        return _of_text(self._category_ids)

    def notes(self) -> Iterator[Fault]:
        """One note for every kind of value that was not written as COCO does."""
        for what, (count, first) in self._notes.items():
            message = f"{what} (entries: {count}, the first: {first})"
            yield Fault("read-otherwise", None, None, message, fatal=False)

    def _entries(self, section: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every entry, with its place for messages."""
        places = self.places.get(section)
        for position, entry in enumerate(self.content[section]):
            if isinstance(entry, dict):
                yield places[position] if places else f"{section}[{position}]", entry

    def _check_entries(self, section: str) -> None:
        if not self.content[section]:
            self.faults.append(Fault(f"no-{section}", None, None, f"the list {section} is empty"))
        for position, entry in enumerate(self.content[section]):
            if not isinstance(entry, dict):
                message = f"{section}[{position}] is {shown(entry)}, expected an object"
                self.faults.append(Fault("malformed", None, None, message))

    def _number(self, section: str) -> dict[int | str, int]:
        """The number of every id in a section: the id itself, or the next free number for text.

        Text is numbered in alphabetical order, so that the splits agree.
        """
        numbers: dict[int | str, int] = {}
        texts: list[str] = []
        for where, entry in self._entries(section):
            key = read_id(entry.get("id"))
            if isinstance(key, int):
                numbers[key] = key
            elif key is not None:
                texts.append(key)
            if key is not None and type(entry["id"]) is not int:
                way = "in alphabetical order" if isinstance(key, str) else "as what they say"
                self._note(
                    f"ids of {section} are text or floats: numbered {way}", where, entry, "id"
                )
        following = max(numbers.values(), default=0) + 1
        numbers.update((text, following + n) for n, text in enumerate(sorted({*texts})))
        return numbers

    def _known(
        self, where: str, entry: dict[str, Any], key: str, numbers: dict[int | str, int]
    ) -> int:
        value = read_id(entry.get(key))
        if value is None:
            raise self._malformed(where, entry, key)
        if value not in numbers:
            kind = "unknown-image" if key == "image_id" else "unknown-category"
            message = f"{where} has {key} {shown(entry[key])}, expected {_FORMS[key]}"
            self.faults.append(Fault(kind, self._image_id(entry), _whole(entry.get("id")), message))
            raise _Unreadable
        return numbers[value]

    def _text(self, where: str, entry: dict[str, Any], key: str) -> str:
        value = entry.get(key)
        if key == "name" and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip() or not is_unicode(value):
            raise self._malformed(where, entry, key)
        return value

    def _size(self, where: str, entry: dict[str, Any]) -> tuple[int, int] | None:
        height, width = entry.get("height"), entry.get("width")
        size = read_size(height, width)
        if size is None and self.sizes_are_stated:
            what = "images state no size: taken from their files"
            self._note(what, where, entry, "width", "height")
        elif size is not None and (height, width) != size:
            what = "sizes of images are text: read as numbers"
            self._note(what, where, entry, "width", "height")
        return size

    def _annotation_id(self, where: str, entry: dict[str, Any], position: int) -> int:
        value = _whole(entry.get("id"))
        if value is not None:
            return value
        self._note("annotations have no whole number as id: renumbered", where, entry, "id")
        return self._largest_annotation_id + position

    def _box(self, where: str, entry: dict[str, Any]) -> tuple[float, float, float, float]:
        if entry.get("bbox") in (None, []) and (box := box_of(entry.get("segmentation"))):
            self._note("boxes are missing: taken from segmentation", where, entry, "id")
            return box
        box = read_box(entry.get("bbox"))
        if box is None:
            raise self._malformed(where, entry, "bbox")
        if any(isinstance(value, str) for value in entry["bbox"]):
            self._note("boxes are text: read as numbers", where, entry, "bbox")
        if degrees := _rotation(entry):
            what = "boxes are rotated, as CVAT writes it: the boxes around them are used"
            self._note(what, where, entry, "attributes")
            return around_rotated(box, degrees)
        return box

    def _area(self, where: str, entry: dict[str, Any]) -> float | None:
        area = read_number(entry.get("area"))
        if area is not None and area > 0:
            return area
        if "area" in entry:
            self._note("areas are not positive numbers: using width x height", where, entry, "area")
        return None

    def _is_crowd(self, where: str, entry: dict[str, Any]) -> bool:
        is_crowd = read_flag(entry.get("iscrowd"))
        if is_crowd is None:
            raise self._malformed(where, entry, "iscrowd")
        return is_crowd

    def _malformed(self, where: str, entry: dict[str, Any], key: str) -> _Unreadable:
        found = f"is {shown(entry[key])}" if key in entry else "is missing"
        if key == "bbox" and "annotations" in self.places and entry.get(key) is None:
            found = "cannot be read"  # in the tool's own file
        message = f"{where}: {key} {found}, expected {_FORMS[key]}"
        is_annotation = not entry.keys().isdisjoint(("image_id", "category_id", "bbox"))
        annotation_id = _whole(entry.get("id")) if is_annotation else None
        self.faults.append(Fault("malformed", self._image_id(entry), annotation_id, message))
        return _Unreadable()

    def _image_id(self, entry: dict[str, Any]) -> int | None:
        key = read_id(entry.get("image_id", entry.get("id") if "file_name" in entry else None))
        return None if key is None else self._image_ids.get(key, _whole(key))

    def _note(self, what: str, where: str, entry: dict[str, Any], *keys: str) -> None:
        found = ", ".join(
            f"{key} {shown(entry[key]) if key in entry else 'missing'}" for key in keys
        )
        count, first = self._notes.get(what, (0, f"{found} of {where}"))
        self._notes[what] = (count + 1, first)


def _rotation(entry: dict[str, Any]) -> float:
    """The degrees by which a box is rotated; 0 where it has a shape, which its box is around."""
    attributes = entry.get("attributes")
    if not isinstance(attributes, dict) or entry.get("segmentation"):
        return 0.0
    return read_number(attributes.get("rotation")) or 0.0


def _of_text(numbers: Mapping[int | str, int]) -> dict[str, int]:
    return {key: number for key, number in numbers.items() if isinstance(key, str)}


def _whole(value: object) -> int | None:
    number = read_id(value)
    return number if isinstance(number, int) else None


def _placeholder(categories: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The category that is the supercategory of all others, if any."""
    for category in categories:
        others = [other.get("supercategory") for other in categories if other is not category]
        name = category.get("name")
        is_above_all = others and all(other == name for other in others)
        if is_above_all and category.get("supercategory") == "none":
            return category
    return None
