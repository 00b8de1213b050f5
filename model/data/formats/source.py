"""What every format's reader returns: a split as a COCO dict, and where each entry came from."""

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bundle.regular_file import require_file
from model.data.faults import Fault
from model.data.formats.image_listing import tell_several
from model.data.image_file import ImageFile

ALL = "all"  # the split of a data set that is not divided
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


def names_of(split: str) -> tuple[str, ...]:
    """What tools call a split, in lower case; the name itself comes first."""
    return SPLIT_NAMES.get(split, (split,))


def split_folder(directory: Path, split: str) -> Path | None:
    """The folder of a split in `directory`, whatever the case of its name."""
    folders = {path.name.lower(): path for path in directory.iterdir() if path.is_dir()}
    return next((folders[name] for name in names_of(split) if name in folders), None)


def split_folders(directory: Path) -> dict[str, Path]:
    """The folders of all splits that have one, by split."""
    folders = {split: split_folder(directory, split) for split in SPLIT_NAMES}
    return {split: folder for split, folder in folders.items() if folder is not None}


def text_files(directory: Path) -> dict[str, Path]:
    """The text files in a folder by their name in lower case, without the suffix."""
    return {path.stem.lower(): path for path in sorted(directory.glob("*.txt"))}


def read_text(file: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte order mark, as Windows writes it.

    Raises:
        ValueError: it is neither.
    """
    data = require_file(file).read_bytes()
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not text in UTF-8 ({error}): save it as UTF-8") from error


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank, without the space around them."""
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


@dataclass(frozen=True)
class DrawnBox:
    """A box around what was drawn in a tool; None if its numbers cannot be read.

    Attributes:
        place: where it is in the tool's file, for messages.
    """

    label: str
    box: Box | None
    place: str


@dataclass(frozen=True)
class Source:
    """One split as it is in its files, not yet checked.

    Attributes:
        file: the file or folder that messages about the whole split name.
        content: images, annotations and categories in COCO's format.
        image_dir: where relative file names start.
        sha256: identifies the content.
        places: by section, the place of every entry in the tool's own files, for messages; a
            section that is missing is numbered instead.
        faults: what the reader itself found.
        image_files: those that the reader needed and has read, and what is wrong with them.
    """

    file: Path
    content: Any
    image_dir: Path
    sha256: str
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    image_files: Mapping[Path, ImageFile | ValueError] = field(default_factory=dict)


def other_files(file: Path, others: Sequence[Path], *, split: str) -> Iterator[Fault]:
    """A note if other files could have been meant by a split, too."""
    if others:
        names = ", ".join(_below(path, file.parent) for path in others)
        message = f"{split} is read from {file.name}; not read: {names}"
        yield Fault("other-files", None, None, message, fatal=False)


def _below(path: Path, folder: Path) -> str:
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


class Layout(Protocol):
    """A data set that was recognised; `read` may be called for several splits."""

    @property
    def directory(self) -> Path:
        """The folder that it is in; nothing outside is read."""

    @property
    def name(self) -> str:
        """The format and what it was recognised by, to show to the user."""

    def has(self, split: str) -> bool:
        """Whether `read` has this split; "all" if the data set is not divided."""

    def looked_for(self, split: str) -> str:
        """Where the split would be, for the message that it is missing."""

    def read(self, split: str) -> Source:
        """A split. Raises ValueError if files that describe the whole set cannot be read."""


class Collector:
    """Collects the entries of a split for a COCO dict; ids of images and boxes start at 1."""

    def __init__(self, file: Path, *, image_dir: Path, class_names: Mapping[int, str]) -> None:
        """Start a split whose classes have these ids and names, in their order."""
        self._file = file
        self._ids = {name: key for key, name in class_names.items()}
        self._image_dir = image_dir
        self._content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": key, "name": name} for key, name in class_names.items()],
        }
        self._places: dict[str, list[str]] = {"images": [], "annotations": []}
        self._faults: list[Fault] = []
        self._left_out: Counter[str] = Counter()

    def add_image(self, path: Path | str, size: tuple[int, int] | None, *, place: str) -> int:
        """Add an image of size (height, width), None if not known; returns its id."""
        images = self._content["images"]
        name = str(path)
        if isinstance(path, Path) and path.is_relative_to(self._image_dir):
            name = path.relative_to(self._image_dir).as_posix()
        image = {"id": len(images) + 1, "file_name": name}
        images.append(image if size is None else image | {"height": size[0], "width": size[1]})
        self._places["images"].append(place)
        return len(images)

    def add_found(
        self,
        paths: Sequence[Path],
        name: str,
        *,
        size: tuple[int, int] | None,
        place: str,
        said: str,
        remedy: str,
    ) -> int:
        """Add the image of an annotation, as `add_image`; a fault if it may be of several.

        Args:
            paths: those that it may be of; if there are none, it is added under `name`.
            said, remedy: see `tell_several`.
        """
        image_id = self.add_image(paths[0] if paths else name, size, place=place)
        if len(paths) > 1:
            message = tell_several(place, paths, said=said, remedy=remedy)
            self.add_fault("several-images", message, image_id=image_id)
        return image_id

    def add_box(
        self, image_id: int, label: int | str, *, bbox: object, place: str, is_crowd: object = 0
    ) -> None:
        """Add a box (x, y, width, height) in pixels, whose numbers are checked later.

        Args:
            label: the id of a class, or its name.
        """
        category_id = self._ids.get(label) if isinstance(label, str) else label
        if category_id is None:
            found = f"class {label!r:.80}" if label else "an object without a class"
            message = f"{place}: {found}, expected one of the {len(self._ids)} of the data set"
            self.add_fault("unknown-category", message, image_id=image_id)
            return
        annotations = self._content["annotations"]
        annotations.append({
            "id": len(annotations) + 1, "image_id": image_id, "category_id": category_id,
            "bbox": list(bbox) if isinstance(bbox, tuple) else bbox, "iscrowd": is_crowd,
        })  # fmt: skip
        self._places["annotations"].append(place)

    def add_fault(self, kind: str, message: str, *, image_id: int | None = None) -> None:
        """Add a fault that makes training wrong."""
        self._faults.append(Fault(kind, image_id, None, message))

    def add(self, faults: Iterable[Fault]) -> None:
        """Add faults and notes."""
        self._faults += faults

    def add_note(self, kind: str, message: str) -> None:
        """Add a note about something that does not prevent training."""
        self._faults.append(Fault(kind, None, None, message, fatal=False))

    def leave_out(self, what: str, count: int = 1) -> None:
        """Count something that has no box, such as "polyline"; one line reports them all."""
        self._left_out[what] += count

    def source(self) -> Source:
        """The split as collected."""
        notes = []
        if left_out := {what: count for what, count in self._left_out.items() if count}:
            message = "left out: " + ", ".join(f"{what} ({n})" for what, n in left_out.items())
            notes.append(Fault("left-out", None, None, message, fatal=False))
        canonical = json.dumps(self._content, sort_keys=True, default=str).encode()
        return Source(
            file=self._file,
            content=self._content,
            image_dir=self._image_dir,
            sha256=hashlib.sha256(canonical).hexdigest(),
            places=self._places,
            faults=(*self._faults, *notes),
        )
