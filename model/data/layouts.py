"""Recognises the format of a data set, as the tool that made it exported it."""

from pathlib import Path

from model.config import TrainConfig
from model.data.formats import coco, cvat, label_studio, labelme, voc, yolo
from model.data.formats.source import ALL, SPLIT_NAMES, Layout
from model.data.unknown_layout import describe_folder

_FINDERS = (coco.find, yolo.find, cvat.find, voc.find, label_studio.find, labelme.find)
_SPLITS = ("train", "val")  # of a run


def find_layout(data_dir: Path) -> Layout:
    """The data set in a folder, or in its subfolder if that is all it contains.

    Raises:
        ValueError: there is none in a known format (says what is there), or it is damaged.
    """
    if not data_dir.is_dir():
        what = "is a file; name the folder that it is in" if data_dir.exists() else "does not exist"
        raise ValueError(f"DATA={data_dir} {what}")
    for find in _FINDERS:
        if (layout := find(data_dir)) is not None:
            return layout
    inside = [path for path in data_dir.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    if len(inside) == 1 and inside[0].is_dir():
        return find_layout(inside[0])
    raise ValueError(f"no annotations of a known format in {data_dir}\n{describe_folder(data_dir)}")


def stored_split(layout: Layout, split: str, *, val_fraction: float | None) -> str:
    """The name of the files' split that holds `split`, as a whole or as one side of a division.

    If a data set is not divided, and is not to be, all of it stands for every split.

    Raises:
        ValueError: there is none; says which there are, and what to do.
    """
    if val_fraction is None or split not in _SPLITS:
        stored = split if layout.has(split) else ALL
        if not layout.has(stored):
            raise ValueError(_missing(layout, split))
        return stored
    if layout.has("val"):
        raise ValueError(
            "VAL_FRACTION (--val-fraction) makes a split val for data without one, and this data "
            "set has one: leave it out"
        )
    stored = "train" if layout.has("train") else ALL
    if not layout.has(stored):
        raise ValueError(_missing(layout, "train"))
    return stored


def find_run_layout(
    config: TrainConfig, data_dir: Path | None, *, val_fraction: float | None
) -> Layout | None:
    """The data set of a run, with train and val; None if the configuration makes its own images.

    Raises:
        ValueError: the configuration needs a data set and has none, or the other way round; or
            a split is missing.
    """
    if config.dataset == "digits":
        given = {"DATA= (--data)": data_dir, "VAL_FRACTION= (--val-fraction)": val_fraction}
        for option in (option for option, value in given.items() if value is not None):
            raise ValueError(
                f"config {config.name} makes its own images and takes no {option}; "
                "choose a config with dataset='coco' to train on a directory"
            )
        return None
    if data_dir is None:
        raise ValueError(
            f"config {config.name} needs DATA=DIR (--data), a data set with the splits train and "
            "val, or with VAL_FRACTION=0.1"
        )
    layout = find_layout(data_dir)
    stored = {stored_split(layout, split, val_fraction=val_fraction) for split in _SPLITS}
    if val_fraction is None and stored == {ALL}:
        raise ValueError(_missing(layout, "val"))
    return layout


def require_split(data_dir: Path, split: str, *, val_fraction: float | None) -> None:
    """Raise ValueError unless a data set is recognised and has the split."""
    stored_split(find_layout(data_dir), split, val_fraction=val_fraction)


def _missing(layout: Layout, split: str) -> str:
    there = [name for name in (*SPLIT_NAMES, ALL) if layout.has(name)]
    message = f"no annotations of split {split!r}: this is {layout.name}"
    place = f"looked for {layout.looked_for(split)}"
    divide = (
        "VAL_FRACTION=0.1 (--val-fraction 0.1) sets a tenth of its images aside as val, the same "
        "ones every time"
    )
    if there == [ALL]:
        return f"{message}, not divided into splits. {divide}"
    message = f"{message} with the splits {', '.join(there) or 'of other names'}; {place}"
    return f"{message}. {divide}" if split == "val" and "train" in there else message
