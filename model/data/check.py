"""Checks a data set before the first step and reports every fault by name.

    python -m model.data.check DIR [--split SPLIT] [--val-fraction FRACTION] [--decode]
        [--report FILE.html]

Nothing is repaired. A fault is fatal if training would be wrong; for others the message says what
training does about it. The exit status is 1 if a fault is fatal. Without --decode, images are
checked by their headers, and decoded if they seem truncated; damage amid the pixels is then counted
where the splits are compared, but not named.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bundle.atomic import make_place_for
from bundle.terminal import printable
from model.config import ModelConfig
from model.data.annotations import BoxEntry
from model.data.data_report import DataReport, write_page
from model.data.data_set import DataSet, add_val_fraction, open_data_set
from model.data.doubts import doubts, other_classes, shared_images
from model.data.faults import Fault, describe
from model.data.formats.source import ALL
from model.data.split import MIN_BOX_SIDE_PX, Split, clip_box, is_in_image

ROUNDING_PX = 0.1  # COCO rounds boxes to 0.01; a box that sticks out by less is fine
SHOWN_OF_A_KIND = 10
_LACKS_TARGETS = ("no-annotations", "no-targets", "all-crowds")  # fatal only for training


def check_split(split: Split, model: ModelConfig | None) -> list[Fault]:
    """All faults of a split: those of the annotation file, then of images, then of boxes.

    Args:
        model: limits the objects in an image by its queries and detections; None for no limit.
    """
    return [
        *split.annotations.faults,
        *_duplicates(split),
        *split.file_faults,
        *_box_faults(split),
        *doubts(split, model),
    ]


def check_validation(val: Split, train: Split | None = None) -> list[Fault]:
    """All faults of an evaluation split, alone and compared with train; it may have no boxes."""
    faults = check_split(val, None)
    if any(fault.kind in _LACKS_TARGETS for fault in faults):
        message = "no box to evaluate on, so there is no AP, and the best epoch is the last one"
        faults = [fault for fault in faults if fault.kind not in _LACKS_TARGETS]
        faults.append(Fault("no-validation-boxes", None, None, message, fatal=False))
    if train is None:
        return faults
    return [*faults, *other_classes(train, val), *shared_images(train, val)]


def _duplicates(split: Split) -> Iterator[Fault]:
    annotations = split.annotations
    for image_id in _repeated(image.id for image in annotations.images):
        yield Fault("duplicate-image-id", image_id, None, "two images have this id")
    first_with: dict[Path, int] = {}
    for image in split.images:
        path = split.files[image.id].path
        first = first_with.setdefault(path, image.id)
        if first != image.id:
            yield Fault(
                "duplicate-file", image.id, None, f"{path} is the file of image {first} too"
            )
    yield from _equal_images(split)
    for annotation_id in _repeated(box.id for box in annotations.boxes):
        yield Fault("duplicate-annotation-id", None, annotation_id, "two annotations have this id")
    for category_id in _repeated(info.id for info in annotations.classes):
        yield Fault("duplicate-category-id", None, None, f"two categories have id {category_id}")
    names = [info.name for info in annotations.classes]
    for name in _repeated(names):
        yield Fault("duplicate-category-name", None, None, f"two categories are named {name!r}")
    for alike in _alike(names):
        shown = ", ".join(map(repr, alike))
        message = f"names of classes differ only in case or spaces: {shown}; are they one class?"
        yield Fault("similar-category-names", None, None, message, fatal=False)


def _equal_images(split: Split) -> Iterator[Fault]:
    """Files of other names with the same content, whose boxes may contradict each other."""
    first_with: dict[bytes, Path] = {}
    pairs = [
        (path, first)
        for path, digest in {file.path: file.digest for file in split.files.values()}.items()
        if (first := first_with.setdefault(digest, path)) != path
    ]
    if pairs:
        path, first = pairs[0]
        message = (
            f"images with the content of another: {len(pairs)}, such as {path}, which is {first}: "
            "keep one of each, with all of its boxes"
        )
        yield Fault("equal-images", None, None, message, fatal=False)


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of different names that are the same without case and spaces."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault("".join(name.casefold().split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _box_faults(split: Split) -> Iterator[Fault]:
    """Faults of boxes; images of the wrong size are skipped, as they have a fault already."""
    of_wrong_size = {fault.image_id for fault in split.file_faults if fault.fatal}
    for box in split.annotations.boxes:
        if box.image_id in split.files and box.image_id not in of_wrong_size:
            yield from _box_fault(box, *split.size(box.image_id))


def _box_fault(box: BoxEntry, height: int, width: int) -> Iterator[Fault]:
    x, y, w, h = box.bbox
    found = f"box [x, y, w, h] = [{', '.join(f'{value:.6g}' for value in box.bbox)}]"
    image = f"the image of {width} x {height} pixels"
    if w <= 0 or h <= 0:
        kind, message = "empty-box", f"{found} is empty: not evaluated and not trained on"
    elif not is_in_image(box.bbox, (height, width)):
        message = f"{found} is outside {image}: not evaluated and not trained on"
        kind = "box-outside"
    elif clip_box(box.bbox, (height, width)) is None:
        message = f"{found} is under {MIN_BOX_SIDE_PX:g} pixel wide or high: not trained on"
        kind = "thin-box"
    elif min(x, y, width - x - w, height - y - h) < -ROUNDING_PX:
        kind, message = "box-partly-outside", f"{found} sticks out of {image}: clipped to it"
    else:
        return
    yield Fault(kind, box.image_id, box.id, message, fatal=False)


def main() -> int:
    """Report every fault of a data set, in any known format."""
    parser = argparse.ArgumentParser(prog="python -m model.data.check", description=main.__doc__)
    parser.add_argument("data", type=Path, help="directory of the data set")
    parser.add_argument("--split", help="default: train and val")
    parser.add_argument("--decode", action="store_true", help="decode every image")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page")
    add_val_fraction(parser)
    args = parser.parse_args()
    try:
        data_set = open_data_set(args.data, args.val_fraction)
        if args.report is not None:
            make_place_for(args.report)
        report, is_wrong = _check(data_set, args.split, args.decode)
        if report is not None:
            _print_content(report, args.report)
    except (ValueError, OSError) as error:
        print(printable(error), file=sys.stderr)
        return 1
    return int(is_wrong)


def _check(data_set: DataSet, split: str | None, decode: bool) -> tuple[DataReport | None, bool]:
    """Print the faults; returns what can be read, if anything, and whether something is wrong."""
    opened: dict[str, Split] = {}
    faults: dict[str, list[Fault]] = {}
    is_wrong = False
    for name in _splits(data_set) if split is None else [split]:
        try:
            opened[name] = data_set.open(name, decode=decode)
        except ValueError as error:
            print(printable(error), file=sys.stderr)
            is_wrong = True
            continue
        if name in ("train", ALL):
            faults[name] = check_split(opened[name], ModelConfig())
        else:
            faults[name] = check_validation(opened[name], opened.get("train"))
        print(printable(f"{name}: {opened[name].annotations.file}"))
        print(printable(describe(faults[name], limit=SHOWN_OF_A_KIND)))
        is_wrong |= any(fault.fatal for fault in faults[name])
    if not opened:
        return None, is_wrong
    return DataReport(data_set.describe(list(opened.values())), opened, faults), is_wrong


def _print_content(report: DataReport, page: Path | None) -> None:
    """Print what is in a data set, and write the page."""
    print(printable("\n".join(report.lines())))
    comparison = report.compare()
    if comparison is not None:
        print(printable(comparison))
    print(printable(report.name))
    if ALL in report.splits:
        print("to train on it, set VAL_FRACTION=0.1 (--val-fraction 0.1), which makes a split val")
    if page is not None:
        write_page(report, page, comparison=comparison)
        print(f"{page} shows the data")


def _splits(data_set: DataSet) -> list[str]:
    """Train and val, or the only split of a data set that is not to be divided."""
    is_whole = data_set.val_fraction is None and data_set.layout.has(ALL)
    return [ALL] if is_whole else ["train", "val"]


if __name__ == "__main__":
    sys.exit(main())
