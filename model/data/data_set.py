"""A data set in a folder: its splits, as stored or made, opened for check, training, evaluation."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.data.annotations import parse_annotations
from model.data.formats.source import ALL, Layout
from model.data.layouts import find_layout, stored_split
from model.data.split import Split, open_split


@dataclass(frozen=True)
class DataSet:
    """A data set that was recognised; every file of it is read once.

    Attributes:
        val_fraction: the part of the images that becomes the split val, if the files have none.
    """

    layout: Layout
    val_fraction: float | None = None
    _divided: dict[str, Split] = field(default_factory=dict)

    def open(self, split: str, *, decode: bool = False) -> Split:
        """A split, of which only the readability is checked; with `decode`, that of the pixels too.

        Raises:
            ValueError: there is no such split, or its annotations cannot be read at all.
        """
        stored = stored_split(self.layout, split, val_fraction=self.val_fraction)
        if self.val_fraction is None or split not in ("train", "val"):
            return self._read(stored, decode)
        if stored not in self._divided:
            self._divided[stored] = self._read(stored, decode)
        return divide(self._divided[stored], self.val_fraction)[split == "val"]

    def describe(self, splits: Sequence[Split]) -> str:
        """One line: format, classes, images."""
        num_classes = len(splits[0].annotations.classes)
        counts = " + ".join(str(len(split.annotations.images)) for split in splits)
        is_whole = self.val_fraction is None and self.layout.has(ALL)
        note = ", not divided into splits" * is_whole
        return f"data set: {self.layout.name}, classes: {num_classes}, images: {counts}{note}"

    def _read(self, stored: str, decode: bool) -> Split:
        source = self.layout.read(stored)
        return open_split(
            parse_annotations(source),
            source.image_dir,
            data_dir=self.layout.directory,
            decode=decode,
            known=source.image_files,
        )


def open_data_set(data_dir: Path, val_fraction: float | None = None) -> DataSet:
    """The data set in a folder. Raises ValueError if its format is not known."""
    return DataSet(find_layout(data_dir), val_fraction)


def divide(split: Split, val_fraction: float) -> tuple[Split, Split]:
    """Train and val, by a hash of every image's bytes.

    An image is always on the same side, on every machine, whatever its name and whatever other
    images there are. Equal images are on the same side. Images that cannot be read are in train.

    Raises:
        ValueError: a side would have no image.
    """
    is_val = {
        image_id: int.from_bytes(file.digest[:8], "big") < val_fraction * 2**64
        for image_id, file in split.files.items()
    }
    num_images, num_val = len(split.annotations.images), sum(is_val.values())
    if num_images and num_val in (0, num_images):
        raise ValueError(
            f"VAL_FRACTION={val_fraction:g} puts {num_val} of {num_images} images into val: "
            "give another fraction"
        )
    return _side(split, is_val, False), _side(split, is_val, True)


def _side(split: Split, is_val: dict[int, bool], side: bool) -> Split:
    """The images of one side with their boxes and faults; faults of no image stay with both."""
    annotations = split.annotations
    return Split(
        replace(
            annotations,
            images=tuple(i for i in annotations.images if is_val.get(i.id, False) is side),
            boxes=tuple(b for b in annotations.boxes if is_val.get(b.image_id, False) is side),
            faults=tuple(f for f in annotations.faults if _is_of(f.image_id, is_val, side)),
        ),
        {image_id: file for image_id, file in split.files.items() if is_val[image_id] is side},
        tuple(f for f in split.file_faults if _is_of(f.image_id, is_val, side)),
    )


def _is_of(image_id: int | None, is_val: dict[int, bool], side: bool) -> bool:
    return image_id is None or is_val.get(image_id, False) is side


def add_val_fraction(parser: argparse.ArgumentParser) -> None:
    """Add the option --val-fraction."""
    parser.add_argument(
        "--val-fraction",
        type=_fraction,
        metavar="FRACTION",
        help="part of the images, such as 0.1, that becomes the split val if the data set has none",
    )


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return fraction
