"""Says what is in a folder that is not a data set in a known format, and what it may be."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bundle.folder import files_below
from bundle.json_file import starts_with
from model.data.formats.image_listing import IMAGE_SUFFIXES
from model.data.formats.source import read_lines
from model.data.formats.yolo_line import parse_line

_SEEN_FILES = 20_000
_SEEN_TEXTS = 20
_SHOWN_KINDS = 4
_SHOWN_FOLDERS = 8
_TABLES = {".csv", ".parquet", ".record", ".tfrecord", ".tfrecords"}
_VIA = ('"_via_', '"shape_attributes"')
_KNOWN = (
    "known are COCO, YOLO (Ultralytics, Roboflow, darknet), Pascal VOC, CVAT for images 1.1, Label "
    "Studio's JSON and labelme; the folders of each are in docs/training.md"
)


def describe_folder(data_dir: Path) -> str:
    """Lines that say what was found, what it looks like, and which formats are known."""
    counts: dict[str, Counter[str]] = {}
    for path in islice(files_below(data_dir), _SEEN_FILES):
        folder = path.parent.relative_to(data_dir).as_posix()
        counts.setdefault(folder, Counter())[path.suffix.lower() or path.name] += 1
    lines = [f"  {_place(folder)}{_kinds(kinds)}" for folder, kinds in sorted(counts.items())]
    if len(lines) > _SHOWN_FOLDERS:
        rest = len(lines) - _SHOWN_FOLDERS
        lines = [*lines[:_SHOWN_FOLDERS], f"  and more folders: {rest}"]
    suffixes = {suffix for kinds in counts.values() for suffix in kinds}
    guesses = [f"it looks like {guess}" for guess in _guesses(data_dir, suffixes)]
    return "\n".join(["found:", *(lines or ["  no file"]), *guesses, _KNOWN])


def _guesses(data_dir: Path, suffixes: set[str]) -> Iterator[str]:
    """A guess at the format from the kinds of files, and what is missing for it."""
    has_images = bool(suffixes & IMAGE_SUFFIXES)
    if ".zip" in suffixes or ".tar" in suffixes or ".gz" in suffixes:
        yield "an archive: unpack it first"
    if ".xml" in suffixes:
        yield (
            "Pascal VOC or CVAT, but no .xml file in it, in Annotations/ or in the folders train/ "
            "and val/ starts with the element annotation or annotations"
        )
    if ".txt" in suffixes and has_images:
        if _has_yolo_lines(data_dir):
            yield (
                "YOLO without the names of its classes: add data.yaml, or classes.txt with a name "
                "on every line, in the order of the numbers in the label files"
            )
        else:
            yield "text files of another tool, such as DOTA's or KITTI's: export as COCO or YOLO"
    if {".jsonl", ".ndjson"} & suffixes:
        yield "lines of JSON, such as Hugging Face's imagefolder has: export the data set as COCO"
    elif (data_dir / "meta.json").is_file() and any(data_dir.glob("*/ann")):
        yield "Supervisely: export the data set as COCO"
    elif any(starts_with(file, "{", *_VIA) for file in data_dir.glob("*.json")):
        yield "VGG Image Annotator (VIA): export its annotations as COCO"
    elif ".json" in suffixes:
        yield (
            "JSON of another tool: none of the .json files has COCO's images, annotations and "
            "categories, labelme's shapes, or the tasks of Label Studio"
        )
    if suffixes & _TABLES:
        yield "a table or records: export the data set again, as COCO"
    if suffixes and suffixes <= IMAGE_SUFFIXES:
        yield "images without annotations"
    if (data_dir / "labels").is_dir() and not has_images:
        yield "YOLO without its images"


def _has_yolo_lines(data_dir: Path) -> bool:
    """Whether one of the first text files begins with a line of YOLO's, or is empty."""
    files = (path for path in files_below(data_dir) if path.suffix.lower() == ".txt")
    return any(_is_yolo(file) for file in islice(files, _SEEN_TEXTS))


def _is_yolo(file: Path) -> bool:
    try:
        lines = read_lines(file)
        if lines:
            parse_line(lines[0], has_points=False)
    except ValueError:
        return False
    return True


def _place(folder: str) -> str:
    return "" if folder == "." else f"{folder}/: "


def _kinds(kinds: Counter[str]) -> str:
    shown = [f"{count} {suffix}" for suffix, count in kinds.most_common(_SHOWN_KINDS)]
    return ", ".join([*shown, "..."] if len(kinds) > _SHOWN_KINDS else shown)
