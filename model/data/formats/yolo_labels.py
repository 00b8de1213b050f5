"""Where the label file of an image is in YOLO's layouts, and label files that are elsewhere."""

from collections.abc import Iterable
from pathlib import Path

from model.data.formats.image_listing import composed, images_below, sorted_below
from model.data.formats.source import read_lines
from model.data.formats.yolo_line import parse_line
from model.data.place import spellings

_NOT_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"})


def label_file_of(image: Path) -> Path:
    """The label file of an image: in labels/ in place of the last images/, or else beside it."""
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        twin = Path(*parts[:last], "labels", *parts[last + 1 :])
        if (found := _spelled(twin)).is_file() or not _spelled(beside).is_file():
            return found
    return _spelled(beside)


def _spelled(file: Path) -> Path:
    """The file as its name is spelled in its folder, with accents and case of other systems."""
    if file.is_file():
        return file
    names = [name for one in spellings(file.stem) for name in (f"{one}.txt", f"{one}.TXT")]
    return next((path for path in map(file.with_name, names) if path.is_file()), file)


def strays_beside(label_files: set[Path]) -> set[Path]:
    """Text files in the folders of label files that belong to no image, as these are all."""
    folders = {file.parent for file in label_files}
    files = {file for folder in folders for file in sorted_in(folder)}
    return {file for file in files - label_files if file.name.lower() not in _NOT_LABELS}


def sorted_in(folder: Path) -> list[Path]:
    """The text files in a folder, without hidden ones."""
    return sorted(path for path in folder.glob("*.[tT][xX][tT]") if path.name[0] != ".")


def misplaced_label(images: Iterable[Path], directory: Path) -> tuple[Path, Path] | None:
    """An image without a label file, and one of its name in a place where YOLO does not look.

    Args:
        images: those without a label file.
        directory: of the data set. A label file there that belongs to an image is in its place.
    """
    stems = {composed(image.stem): image for image in images}
    files = [path for path in sorted_below(directory, ".txt") if composed(path.stem) in stems]
    if not files:
        return None
    taken = {label_file_of(image) for image in images_below(directory)}
    for file in files:
        if file not in taken and file.name.lower() not in _NOT_LABELS and _has_labels(file):
            return stems[composed(file.stem)], file
    return None


def _has_labels(file: Path) -> bool:
    """Whether the first line of a file is a label's."""
    try:
        parse_line(next(iter(read_lines(file)), ""), has_points=True)
    except (ValueError, IndexError):
        return False
    return True
