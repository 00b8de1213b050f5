"""The check of a COCO-format data set before the first step: every fault, by name.

    python -m model.data.check DIR [--split train]

Nothing is repaired. A fault is fatal where training would be wrong; for the others the message
says what training will do about it. Exit status 1 if there is a fatal one.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bundle.manifest import ClassInfo
from bundle.preprocess import displayed_size
from model.data.coco import (
    MIN_BOX_SIDE_PX,
    MIN_TRAINING_SIDE_PX,
    locate,
    read_annotations,
    read_classes,
    training_box,
)

ROUNDING_PX = 0.1  # COCO rounds boxes to 0.01; a box that sticks out less is no fault
NUM_READERS = 8  # threads that wait for files


@dataclass(frozen=True)
class Fault:
    """Something wrong with a data set.

    Attributes:
        kind: stable name, e.g. "missing-file".
        image_id, annotation_id: as the file has them; None where there is none.
        message: what is wrong, and what training does about it unless fatal.
        fatal: training would be wrong.
    """

    kind: str
    image_id: Any
    annotation_id: Any
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        places = (("image", self.image_id), ("annotation", self.annotation_id))
        where = "".join(f"{name} {value}: " for name, value in places if value is not None)
        return f"{'FATAL ' if self.fatal else ''}{self.kind}: {where}{self.message}"


def check_dataset(
    annotation_file: Path, image_dir: Path, classes: Sequence[ClassInfo] | None = None
) -> list[Fault]:
    """All faults of a data set, in the order of the file.

    Args:
        classes: what the categories must be, ids and names; None takes them as they are.
    """
    try:
        content = read_annotations(annotation_file)
    except ValueError as error:
        return [Fault("unreadable-annotations", None, None, str(error))]
    malformed = list(_malformed(content))
    if malformed:
        return malformed  # what follows relies on the fields
    return [
        *_duplicates(content),
        *_category_faults(content, classes),
        *_file_faults(content["images"], image_dir),
        *_annotation_faults(content),
    ]


def describe(faults: Sequence[Fault], limit: int | None = None) -> str:
    """One line a fault, at most `limit` of a kind, and a count of every kind."""
    shown: Counter[str] = Counter()
    lines = []
    for fault in faults:
        shown[fault.kind] += 1
        if limit is None or shown[fault.kind] <= limit:
            lines.append(str(fault))
        elif shown[fault.kind] == limit + 1:
            lines.append(f"{fault.kind}: and more of this kind, see python -m model.data.check")
    counts = ", ".join(f"{count} {kind}" for kind, count in shown.items())
    num_fatal = sum(fault.fatal for fault in faults)
    lines.append(f"{len(faults)} faults, {num_fatal} fatal: {counts}" if faults else "no faults")
    return "\n".join(lines)


def _malformed(content: dict[str, Any]) -> Iterator[Fault]:
    """Entries whose fields are missing or of another type than COCO's."""
    fields: dict[str, dict[str, type]] = {
        "images": {"id": int, "file_name": str, "height": int, "width": int},
        "categories": {"id": int, "name": str},
        "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    }
    for section, expected in fields.items():
        for position, entry in enumerate(content[section]):
            is_object = isinstance(entry, dict)
            wrong = [
                f"{key} ({expected_type.__name__})"
                for key, expected_type in expected.items()
                if not is_object or not _is_a(entry.get(key), expected_type)
            ]
            if section == "annotations" and not wrong:
                numbers = [*entry["bbox"], entry.get("area", 0)]
                if len(numbers) != 5 or not all(_is_finite(value) for value in numbers):
                    wrong = ["bbox, four finite numbers, and area, if given, another"]
            if wrong:
                ids = entry if is_object else {}
                image_id = ids.get("id" if section == "images" else "image_id")
                annotation_id = ids.get("id") if section == "annotations" else None
                message = f"{section}[{position}] needs {', '.join(wrong)}"
                yield Fault("malformed", image_id, annotation_id, message)


def _is_a(value: object, expected_type: type) -> bool:
    return isinstance(value, expected_type) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _duplicates(content: dict[str, Any]) -> Iterator[Fault]:
    for image_id in _repeated(image["id"] for image in content["images"]):
        yield Fault("duplicate-image-id", image_id, None, "two images have this id")
    first_with: dict[str, int] = {}
    for image in content["images"]:
        first = first_with.setdefault(image["file_name"], image["id"])
        if first != image["id"]:
            message = f"{image['file_name']} is the file of image {first} too"
            yield Fault("duplicate-file", image["id"], None, message)
    for annotation_id in _repeated(entry["id"] for entry in content["annotations"]):
        yield Fault("duplicate-annotation-id", None, annotation_id, "two annotations have this id")
    for category_id in _repeated(category["id"] for category in content["categories"]):
        yield Fault("duplicate-category-id", None, None, f"two categories have id {category_id}")
    for name in _repeated(category["name"] for category in content["categories"]):
        yield Fault("duplicate-category-name", None, None, f"two categories are named {name!r}")


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _category_faults(
    content: dict[str, Any], classes: Sequence[ClassInfo] | None
) -> Iterator[Fault]:
    for section in ("images", "annotations", "categories"):
        if not content[section]:
            yield Fault(f"no-{section}", None, None, f"the list {section} is empty")
    found = read_classes(content)
    if classes is not None and set(found) != set(classes):
        unknown = ", ".join(f"{c.id} {c.name}" for c in found if c not in classes) or "none"
        absent = ", ".join(f"{c.id} {c.name}" for c in classes if c not in found) or "none"
        message = f"categories are not the expected ones; not expected: {unknown}; absent: {absent}"
        yield Fault("other-categories", None, None, message)


def _file_faults(images: list[dict[str, Any]], image_dir: Path) -> Iterator[Fault]:
    """Opens every image's header."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = pool.map(lambda image: _file_fault(image, image_dir), images)
        for fault in tqdm(
            found, total=len(images), desc="checking images", unit=" images", leave=False
        ):
            if fault is not None:
                yield fault


def _file_fault(image: dict[str, Any], image_dir: Path) -> Fault | None:
    path = image_dir / image["file_name"]
    try:
        height, width = displayed_size(path.read_bytes())
    except OSError as error:
        return Fault("missing-file", image["id"], None, f"{path}: {error.strerror}")
    except ValueError as error:
        return Fault("unreadable-image", image["id"], None, f"{path}: {error}")
    if (height, width) != (image["height"], image["width"]):
        message = (
            f"{path} is {width} x {height} pixels as displayed, the annotations say "
            f"{image['width']} x {image['height']}: its boxes would be in the wrong place"
        )
        return Fault("other-size", image["id"], None, message)
    if min(height, width) < MIN_TRAINING_SIDE_PX:
        message = f"{path} is {width} x {height} pixels, too small: not trained on"
        return Fault("tiny-image", image["id"], None, message, fatal=False)
    return None


def _annotation_faults(content: dict[str, Any]) -> Iterator[Fault]:
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    category_ids = {category["id"] for category in content["categories"]}
    num_targets = 0
    for annotation in content["annotations"]:
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if category_id not in category_ids:
            message = f"category {category_id} is not in the list of categories"
            yield Fault("unknown-category", image_id, annotation["id"], message)
        if image_id not in sizes:
            message = f"image {image_id} is not in the list of images"
            yield Fault("unknown-image", image_id, annotation["id"], message)
        else:
            box = training_box(annotation, *sizes[image_id])
            num_targets += box is not None and not annotation.get("iscrowd", 0)
            yield from _box_fault(annotation, *sizes[image_id])
    if content["annotations"] and not num_targets:
        yield Fault("no-targets", None, None, "no annotation is left that can be trained on")


def _box_fault(annotation: dict[str, Any], height: int, width: int) -> Iterator[Fault]:
    x, y, w, h = annotation["bbox"]
    ids = (annotation["image_id"], annotation["id"])
    box = f"box [x, y, w, h] = {annotation['bbox']}"
    if w <= 0 or h <= 0 or annotation.get("area", 1) <= 0:
        message = f"{box} of area {annotation.get('area', w * h)} is empty: not trained on"
        yield Fault("empty-box", *ids, message, fatal=False)
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        message = f"{box} lies outside the image of {width} x {height} pixels: not trained on"
        yield Fault("box-outside", *ids, message, fatal=False)
    elif training_box(annotation, height, width) is None:
        message = f"{box} is under {MIN_BOX_SIDE_PX:g} pixel wide or high: not trained on"
        yield Fault("thin-box", *ids, message, fatal=False)
    elif min(x, y, width - x - w, height - y - h) < -ROUNDING_PX:
        message = f"{box} sticks out of the image of {width} x {height} pixels: clipped to it"
        yield Fault("box-partly-outside", *ids, message, fatal=False)


def main() -> int:
    """Report every fault of a data set in COCO format."""
    parser = argparse.ArgumentParser(prog="python -m model.data.check", description=main.__doc__)
    parser.add_argument("data", type=Path, help="directory of the data set")
    parser.add_argument("--split", default="train")
    args = parser.parse_args()
    try:
        annotation_file, image_dir = locate(args.data, args.split)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    faults = check_dataset(annotation_file, image_dir)
    print(f"{annotation_file}, images in {image_dir}")
    print(describe(faults))
    return int(any(fault.fatal for fault in faults))


if __name__ == "__main__":
    sys.exit(main())
