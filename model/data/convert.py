"""Writes a data set of any known format as COCO.

    python -m model.data.convert DATA --out DIR [--val-fraction FRACTION]

DIR gets annotations/SPLIT.json and images/SPLIT/ for every split, or instances.json and images/ for
a data set that is not divided. Images are hard links where the file system has them, else copies.
DIR appears whole or not at all.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command, raise_at_ctrl_c

    begin_command()

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bundle.staging import staged
from bundle.terminal import log_messages
from model.data.check import check_validation
from model.data.data_set import DataSet, add_val_fraction, open_data_set
from model.data.evaluation_data import report_faults
from model.data.formats.source import ALL, SPLIT_NAMES
from model.data.split import Split

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a data set of any known format as COCO."""
    parser = argparse.ArgumentParser(prog="python -m model.data.convert", description=main.__doc__)
    parser.add_argument("data", type=Path, help="directory of the data set")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must be new")
    add_val_fraction(parser)
    args = parser.parse_args(arguments)
    log_messages(logging.INFO)
    try:
        convert(open_data_set(args.data, args.val_fraction), args.out)
    except (ValueError, OSError) as error:
        log.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("stopped; nothing was written")
        return 130
    return 0


def convert(data_set: DataSet, out: Path) -> None:
    """Write every split of a data set to `out`.

    Raises:
        ValueError: `out` holds something, or the data set has a fatal fault.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists; name a new directory with --out")
    splits = {name: data_set.open(name) for name in _split_names(data_set)}
    for split in splits.values():
        report_faults(split, check_validation(split))
    with staged(out) as directory:
        for name, split in splits.items():
            _write(split, directory, name)
    log.info("%s, in %s", data_set.describe(list(splits.values())), out)


def _split_names(data_set: DataSet) -> list[str]:
    stored = [name for name in (*SPLIT_NAMES, ALL) if data_set.layout.has(name)]
    if data_set.val_fraction is None:
        return stored
    return ["train", "val", *(name for name in stored if name not in ("train", ALL))]


def _write(split: Split, directory: Path, name: str) -> None:
    """Images first, then the file that names them."""
    image_dir = directory / "images" if name == ALL else directory / "images" / name
    image_dir.mkdir(parents=True)
    names: dict[int, str] = {}
    for image in tqdm(split.images, desc=f"writing {name}", unit=" images", leave=False):
        source = split.files[image.id].path
        names[image.id] = _free_name(source, image_dir, image.id)
        _link(source, image_dir / names[image.id])
    file = "instances.json" if name == ALL else f"annotations/{name}.json"
    (directory / file).parent.mkdir(exist_ok=True)
    (directory / file).write_text(json.dumps(_content(split, names)))


def _free_name(source: Path, image_dir: Path, image_id: int) -> str:
    """The file's name, preceded by the image's id as often as another image has that name."""
    name = source.name
    while (image_dir / name).exists():
        name = f"{image_id}-{name}"
    return name


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _content(split: Split, names: dict[int, str]) -> dict[str, list[dict[str, Any]]]:
    """Everything that was read, including boxes that training leaves out."""
    annotations = split.annotations
    return {
        "images": [
            {"id": key, "file_name": name,
             "height": split.size(key)[0], "width": split.size(key)[1]}
            for key, name in names.items()
        ],
        "annotations": [
            {"id": box.id, "image_id": box.image_id, "category_id": box.category_id,
             "bbox": list(box.bbox), "area": box.area, "iscrowd": int(box.is_crowd)}
            for box in annotations.boxes
        ],
        "categories": [{"id": info.id, "name": info.name} for info in annotations.classes],
    }  # fmt: skip


if __name__ == "__main__":
    raise_at_ctrl_c()
    sys.exit(main())
