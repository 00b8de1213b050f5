"""A data set before training: lines for the terminal, and a page with its numbers and images."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from bundle.atomic import write_atomically
from model.data.faults import Fault, describe
from model.data.image_file import read_pixels
from model.data.image_files import others_beside
from model.data.look_alikes import Comparison, compare_splits
from model.data.split import Split
from model.data.statistics import Statistics, describe_content
from model.pages.page import render
from model.pages.pictures import DrawnBox, missing_picture, picture

DATA_PAGE = "data.html"  # in the directory of a run
NUM_PICTURES = 24  # of a split
NUM_AUGMENTED = 12
NUM_PAIRS = 12
SECONDS_TO_COMPARE = 30.0  # before a run
SECONDS_TO_DRAW = 15.0  # a sheet of pictures
_SHOWN_OF_A_KIND = 20
log = logging.getLogger(__name__)
Clock = Callable[[], float]
Item = TypeVar("Item")


@dataclass(frozen=True)
class DataReport:
    """What the report says about a data set.

    Attributes:
        name: format, classes and images, in one line.
        splits, faults: by the name of the split.
    """

    name: str
    splits: Mapping[str, Split]
    faults: Mapping[str, Sequence[Fault]]

    @cached_property
    def statistics(self) -> dict[str, Statistics]:
        """By the name of the split."""
        return {name: Statistics.of(split) for name, split in self.splits.items()}

    def compare(self, seconds: float = float("inf")) -> Comparison | None:
        """Compare val with train, if both are there, in that time."""
        if not {"train", "val"} <= self.splits.keys():
            return None
        return compare_splits(self.splits["train"], self.splits["val"], seconds=seconds)

    def lines(self) -> Iterator[str]:
        """Classes, sizes and shapes of every split."""
        for name, found in self.statistics.items():
            yield from (f"{name}: {line}" for line in describe_content(found))
        if self.unused:
            yield self.unused

    @cached_property
    def unused(self) -> str:
        """How many images are beside those of the splits; empty if there are none."""
        paths = [file.path for split in self.splits.values() for file in split.files.values()]
        others = others_beside(paths)
        if not others:
            return ""
        names = " and ".join(self.splits)
        return f"images beside those of {names}, not used: {len(others)}, such as {others[0]}"


def report_before_training(report: DataReport, path: Path, *, augmented: Any) -> None:
    """Log what is in the data, and write the page; if that fails, one line says so.

    Args:
        augmented: the training set, which returns images as they are trained on.
    """
    for line in report.lines():
        log.info(line)
    comparison = report.compare(SECONDS_TO_COMPARE)
    if comparison is not None:
        log.log(logging.WARNING if comparison.pairs else logging.INFO, "%s", comparison)
    try:
        write_page(report, path, comparison=comparison, augmented=augmented)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "no memory is left"
        log.warning("%s was not written: %s", path, reason)
    else:
        log.info("%s shows the data: classes, sizes, faults, images with their boxes", path)


def write_page(
    report: DataReport,
    path: Path,
    *,
    comparison: Comparison | None,
    augmented: Any = None,
    clock: Clock = time.monotonic,
) -> None:
    """Write the page.

    Raises:
        OSError: it cannot be written; a previous version is intact.
    """
    sheets = [_sheet(name, split, clock) for name, split in report.splits.items()]
    if augmented is not None:
        sheets.append(_augmented_sheet(augmented, clock))
    pairs = () if comparison is None else comparison.pairs
    page = render("data.html", {
        "name": report.name,
        "splits": [
            {"name": name, "file": str(split.annotations.file),
             "lines": list(describe_content(report.statistics[name])),
             "faults": describe(report.faults[name], limit=_SHOWN_OF_A_KIND)}
            for name, split in report.splits.items()
        ],
        "unused": report.unused,
        "comparison": comparison,
        "num_pairs": len(pairs),
        "pairs": [(_draw_file(pair.val, f"val: {pair.val.name}"),
                   _draw_file(pair.train, f"train: {pair.train.name}"))
                  for pair in _in_time(pairs[:NUM_PAIRS], clock)],
        "tables": _tables(list(report.statistics.values())),
        "sheets": sheets,
    })  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)


def _tables(splits: Sequence[Statistics]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Title -> row -> a cell for each split: its count, and the share of the largest one there."""
    tables: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number, statistics in enumerate(splits):
        for title, counts in statistics.tables().items():
            rows = tables.setdefault(title, {})
            largest = max(counts.values(), default=0) or 1
            for name, count in counts.items():
                row = rows.setdefault(name, [{"count": 0, "share": 0.0} for _ in splits])
                row[number] = {"count": count, "share": count / largest}
    return tables


def _sheet(name: str, split: Split, clock: Clock) -> dict[str, Any]:
    """Images evenly spread over a split, with their boxes as annotated."""
    chosen = _spread(split.images, NUM_PICTURES)
    names = {info.id: (number, info.name) for number, info in enumerate(split.annotations.classes)}
    boxes: dict[int, list[DrawnBox]] = defaultdict(list)
    ids = {image.id for image in chosen}
    for box in split.annotations.boxes:
        if box.image_id in ids:
            colour, text = names.get(box.category_id, (0, f"category {box.category_id}"))
            boxes[box.image_id].append(DrawnBox(box.bbox, text, colour, box.is_crowd))
    pictures = [
        _draw_file(split.files[image.id].path, image.file_name, boxes[image.id])
        for image in _in_time(chosen, clock)
    ]
    note = "Boxes as they are annotated, crowds dashed."
    return {"title": f"Images of {name}", "note": note, "pictures": pictures,
            "num_images": len(split.images)}  # fmt: skip


def _augmented_sheet(dataset: Any, clock: Clock) -> dict[str, Any]:
    """Samples of a training set, as its first epoch will have them."""
    chosen = _spread(range(len(dataset)), NUM_AUGMENTED)
    pictures = [_draw_sample(dataset, index) for index in _in_time(chosen, clock)]
    note = "Training images as the first epoch has them. Check that boxes still fit their objects."
    return {"title": "As trained on", "note": note, "pictures": pictures,
            "num_images": len(dataset)}  # fmt: skip


def _draw_file(path: Path, name: str, boxes: Sequence[DrawnBox] = ()) -> Markup:
    try:
        image = read_pixels(path)
    except ValueError as error:
        return missing_picture(str(error))
    return picture(image, boxes, caption=f"{name}, {image.shape[1]} x {image.shape[0]}")


def _draw_sample(dataset: Any, index: int) -> Markup:
    try:
        image, target = dataset[index]
    except ValueError as error:
        return missing_picture(str(error))
    height, width = image.shape[:2]
    cx, cy, w, h = target["boxes"].numpy().T * np.array([[width], [height], [width], [height]])
    corners = np.stack((cx - w / 2, cy - h / 2, w, h), axis=1).tolist()
    boxes = [
        DrawnBox(corner, dataset.classes[label].name, label)
        for corner, label in zip(corners, target["labels"].tolist(), strict=True)
    ]
    return picture(image, boxes, caption=f"image {target['image_id']}, {width} x {height}")


def _spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly spread over them."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), limit)).round().astype(int)
    return [items[index] for index in chosen]


def _in_time(items: Sequence[Item], clock: Clock) -> Iterator[Item]:
    """The items, until there is no time for another."""
    end = clock() + SECONDS_TO_DRAW
    for item in items:
        if clock() >= end:
            return
        yield item
