"""COCO's format, in the layouts that tools export it in."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from bundle.json_file import read_json, starts_with
from model.data.formats.source import ALL, SPLIT_NAMES, Source, other_files

ROBOFLOW_FILE = "_annotations.coco.json"
_WHOLE_FILES = ("annotations/instances.json", "instances.json", "result.json")  # Label Studio's
_OF_POSES = "person_keypoints_"  # CVAT writes them beside the boxes
_KEYS = ('"images"', '"annotations"', '"licenses"')


@dataclass(frozen=True)
class CocoData:
    """Annotation files of COCO's format. The split val may be called valid or validation."""

    directory: Path

    @property
    def name(self) -> str:
        """COCO, and the tool where its layout tells it."""
        return "COCO (Roboflow)" if list(self.directory.glob(f"*/{ROBOFLOW_FILE}")) else "COCO"

    def has(self, split: str) -> bool:
        """Whether there is a file of the split; "all" where one file is not divided."""
        if split == ALL:
            is_divided = any(_split_file(self.directory, name) for name in SPLIT_NAMES)
            return not is_divided and _whole_file(self.directory) is not None
        return _split_file(self.directory, split) is not None

    def looked_for(self, split: str) -> str:
        """The files, as a list."""
        return ", ".join(str(p.relative_to(self.directory)) for p in _files(self.directory, split))

    def read(self, split: str) -> Source:
        """The file of a split, as it is."""
        is_whole = split == ALL
        file = _whole_file(self.directory) if is_whole else _split_file(self.directory, split)
        assert file is not None, "the caller asks `has` before"
        source = coco_source(file, _image_dir(self.directory, file, _names(split)))
        there = _coco_files(self.directory) if is_whole else _split_files(self.directory, split)
        others = [path for path in there if path != file and not path.name.startswith(_OF_POSES)]
        return replace(source, faults=tuple(other_files(file, others, split=split)))


def find(data_dir: Path) -> CocoData | None:
    """The data set in a folder, if it has an annotation file of COCO's at a usual place."""
    is_there = any(_split_file(data_dir, name) for name in SPLIT_NAMES) or _coco_files(data_dir)
    return CocoData(data_dir) if is_there else None


def coco_source(annotation_file: Path, image_dir: Path) -> Source:
    """An annotation file of COCO's format.

    Raises:
        ValueError: it cannot be read, or is not JSON.
    """
    try:
        data = annotation_file.read_bytes()
    except OSError as error:
        raise ValueError(f"{annotation_file}: cannot be read: {error}") from error
    content = read_json(data, annotation_file)
    return Source(annotation_file, content, image_dir, hashlib.sha256(data).hexdigest())


def _names(split: str) -> list[str]:
    """What the files of a split may be called, as COCO does first."""
    return [f"{split}2017", f"{split}2014", *SPLIT_NAMES.get(split, (split,))]


def _files(data_dir: Path, split: str) -> list[Path]:
    names = _names(split)
    return [
        *(data_dir / "annotations" / f"instances_{name}.json" for name in names),
        *(data_dir / "annotations" / f"{name}.json" for name in names),
        *(data_dir / f"instances_{name}.json" for name in names),
        *(data_dir / f"{name}.json" for name in names),
        *(data_dir / name / ROBOFLOW_FILE for name in names),
    ]


def _split_file(data_dir: Path, split: str) -> Path | None:
    return next(iter(_split_files(data_dir, split)), None)


def _split_files(data_dir: Path, split: str) -> list[Path]:
    """The annotation files of a split; the first one counts."""
    files = [path for path in _files(data_dir, split) if path.is_file()]
    files = files or _files_of_subsets(data_dir, split)
    return [path for path in files if not starts_with(path, "[")]


def _files_of_subsets(data_dir: Path, split: str) -> list[Path]:
    """Files in another case: CVAT names them after its subsets, as in instances_Train.json."""
    there = [*data_dir.glob("*.json"), *data_dir.glob("annotations/*.json")]
    by_name = {path.with_name(path.name.lower()): path for path in there if path.is_file()}
    return [by_name[path] for path in _files(data_dir, split) if path in by_name]


def _whole_file(data_dir: Path) -> Path | None:
    """The file of a data set that is not divided: one with a usual name, or the only one."""
    usual = [data_dir / name for name in _WHOLE_FILES]
    found = [path for path in usual if path.is_file() and not starts_with(path, "[")]
    others = _coco_files(data_dir)
    # Beside it, CVAT may write person_keypoints_default.json.
    instances = [file for file in others if file.name.startswith("instances_")]
    alone = [files[0] for files in (others, instances) if len(files) == 1]
    return next(iter([*found, *alone]), None)


def _coco_files(data_dir: Path) -> list[Path]:
    files = [*data_dir.glob("*.json"), *data_dir.glob("annotations/*.json")]
    return sorted(file for file in files if file.is_file() and starts_with(file, "{", *_KEYS))


def _image_dir(data_dir: Path, annotation_file: Path, names: list[str]) -> Path:
    if annotation_file.name == ROBOFLOW_FILE:
        return annotation_file.parent
    folders = dict.fromkeys([annotation_file.stem.removeprefix("instances_"), *names])
    image_dirs = [
        *(data_dir / folder for folder in folders),
        *(data_dir / "images" / folder for folder in folders),
        data_dir / "images",
        data_dir / "data",
    ]
    return next((path for path in image_dirs if path.is_dir()), annotation_file.parent)
