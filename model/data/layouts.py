"""Finds the files of a data set, in the layouts that tools export."""

from pathlib import Path

from model.config import TrainConfig

ROBOFLOW_FILE = "_annotations.coco.json"
_OTHER_NAMES = {"val": ("valid",)}  # of a split


def locate(data_dir: Path, split: str) -> tuple[Path, Path]:
    """The annotation file and the image directory of a split ("train", "val", ...).

    The first layout found counts: COCO's own `annotations/instances_SPLIT2017.json` (or 2014, or
    without a year) with `SPLIT2017/`; `annotations/SPLIT.json`; `SPLIT.json`; Roboflow's
    `SPLIT/_annotations.coco.json`; or one file for every split, `instances.json` or Label
    Studio's `result.json`. Images are in `SPLIT2017/`, `images/SPLIT/`, `SPLIT/`, `images/` or
    beside the annotation file. The split val may be called valid.

    Raises:
        ValueError: none is found; the message lists what was looked for.
    """
    names = [split, *_OTHER_NAMES.get(split, ())]
    stems = [f"{split}2017", f"{split}2014", *names]
    annotation_files = [
        *(data_dir / "annotations" / f"instances_{stem}.json" for stem in stems),
        *(data_dir / "annotations" / f"{name}.json" for name in names),
        *(data_dir / f"instances_{name}.json" for name in names),
        *(data_dir / f"{name}.json" for name in names),
        *(data_dir / name / ROBOFLOW_FILE for name in names),
        data_dir / "annotations" / "instances.json",
        data_dir / "instances.json",
        data_dir / "result.json",
    ]
    annotation_file = next((path for path in annotation_files if path.is_file()), None)
    if annotation_file is None:
        places = "\n".join(f"  {path}" for path in annotation_files)
        raise ValueError(f"no annotations of split {split!r}; looked for\n{places}")
    return annotation_file, _image_dir(data_dir, annotation_file, names)


def locate_run(config: TrainConfig, data_dir: Path | None) -> list[tuple[Path, Path]]:
    """The splits train and val of a run (see `locate`), or none where it makes its own images.

    Raises:
        ValueError: the configuration asks for a directory and there is none, or it takes none.
    """
    if config.dataset == "digits":
        if data_dir is not None:
            raise ValueError(
                f"config {config.name} makes its own images and takes no DATA= (--data); "
                "choose a config with dataset='coco' to train on a directory"
            )
        return []
    if data_dir is None:
        raise ValueError(
            f"config {config.name} needs DATA=DIR (--data), a data set in COCO's format with the "
            "splits train and val"
        )
    return [locate(data_dir, split) for split in ("train", "val")]


def _image_dir(data_dir: Path, annotation_file: Path, names: list[str]) -> Path:
    if annotation_file.name == ROBOFLOW_FILE:
        return annotation_file.parent
    folders = dict.fromkeys([annotation_file.stem.removeprefix("instances_"), *names])
    image_dirs = [
        *(data_dir / folder for folder in folders),
        *(data_dir / "images" / folder for folder in folders),
        data_dir / "images",
    ]
    return next((path for path in image_dirs if path.is_dir()), annotation_file.parent)


def find_image(file_name: str, image_dir: Path) -> Path:
    """The file of an image in `image_dir`, even if a tool put folders before its name.

    Label Studio writes `images/1.png` for a file in the folder images, on Windows `images\\1.png`.

    Raises:
        FileNotFoundError: it is in none of the possible places; names them.
    """
    name = file_name.replace("\\", "/")
    last = name.rsplit("/", 1)[-1]
    places = dict.fromkeys(
        [image_dir / file_name, image_dir / name, image_dir.parent / name, image_dir / last]
    )
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        elsewhere = "".join(f", nor {place}" for place in list(places)[1:])
        raise FileNotFoundError(f"there is no file {next(iter(places))}{elsewhere}")
    return found
