"""Label Studio's own JSON: a list of tasks, whose regions are in percent of the image's sides."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bundle.json_file import read_json, starts_with
from model.data.faults import shown
from model.data.fields import read_number, read_size
from model.data.formats.image_listing import ImageListing, images_below, is_image
from model.data.formats.shapes import around, around_ellipse, around_rotated
from model.data.formats.source import ALL, Box, Collector, Source, split_folders
from model.data.image_file import read_image_file

# What a region's labels are called beside its numbers: by the tag that drew it, or plain.
_LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
_KEYS = ('"annotations"', '"completions"', '"annotation_id"')  # of a task, one or the other
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # before the name of an uploaded file


@dataclass(frozen=True)
class LabelStudioData:
    """One export, or one in the folder of every split. Its classes are sorted by name.

    Attributes:
        files: by split, or the only one.
    """

    directory: Path
    files: dict[str, Path]

    @property
    def name(self) -> str:
        """The format and the files."""
        return f"Label Studio ({', '.join(file.name for file in self.files.values())})"

    def has(self, split: str) -> bool:
        """Whether there is an export of the split."""
        return split in self.files

    def looked_for(self, split: str) -> str:
        """The folder."""
        return f"an export in {split}/"

    def read(self, split: str) -> Source:
        """The annotated tasks of a split; those that nobody annotated are left out."""
        file = self.files[split]
        class_names = dict(enumerate(self._class_names))
        collector = Collector(file, image_dir=file.parent, class_names=class_names)
        listing = ImageListing(images_below(file.parent))
        for position, task in enumerate(self._tasks[file]):
            place = f"task {task.get('id', position + 1)}"
            annotations = _annotations(task)
            if not annotations:
                note = ", but with predictions" if task.get("predictions") else ""
                collector.leave_out(f"tasks without an annotation{note}")
                continue
            chosen = _chosen(annotations)
            collector.leave_out("annotations of tasks that have a later one", len(annotations) - 1)
            regions = [region for region in chosen["result"] if isinstance(region, dict)]
            sizes = [read_size(r.get("original_height"), r.get("original_width")) for r in regions]
            names = [_names_in(value) for value in _image_values(task)]
            paths = _agreed([found for found in (listing.find(*one) for one in names) if found])
            path = paths[0] if paths else next((found[0] for found in names), "")
            size = next((size for size in sizes if size is not None), None)
            image_id = collector.add_image(path, size, place=place)
            size = size or (_measured(paths[0]) if paths and regions else None)
            if len(paths) > 1:
                several = ", ".join(str(found.relative_to(file.parent)) for found in paths)
                message = (
                    f"{place} names several images, {several}, and its boxes may be of any: keep "
                    "only the image that they are of, in its data and in the folder"
                )
                collector.add_fault("several-images", message, image_id=image_id)
            for region in regions:
                _add_region(collector, region, image_id=image_id, place=place, size=size)
        return collector.source()

    @cached_property
    def _tasks(self) -> dict[Path, list[dict[str, Any]]]:
        return {file: _read_tasks(file) for file in self.files.values()}

    @property
    def _class_names(self) -> list[str]:
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        regions = (r for t in tasks for a in _annotations(t) for r in a["result"])
        return sorted({name for region in regions for name in _labels(region)})


def find(data_dir: Path) -> LabelStudioData | None:
    """The data set in a folder, if it, or the folders of its splits, has an export."""
    if (whole := _export(data_dir)) is not None:
        return LabelStudioData(data_dir, {ALL: whole})
    exports = {name: _export(folder) for name, folder in split_folders(data_dir).items()}
    files = {name: file for name, file in exports.items() if file is not None}
    return LabelStudioData(data_dir, files) if files else None


def _export(folder: Path) -> Path | None:
    files = [file for file in sorted(folder.glob("*.json")) if starts_with(file, "[", *_KEYS)]
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(
            f"{folder}: expected one export of Label Studio, found {names}; keep one, or put them "
            "into the folders train and val"
        )
    return files[0] if files else None


def _read_tasks(file: Path) -> list[dict[str, Any]]:
    content = read_json(file.read_bytes(), file)
    tasks = [task for task in content if isinstance(task, dict)]
    if len(tasks) < len(content):
        raise ValueError(f"{file}: expected a list of tasks, found other entries in it")
    if not any("annotations" in task or "completions" in task for task in tasks):
        raise ValueError(
            f"{file}: a list of tasks without annotations; in Label Studio, export as JSON, not as "
            "JSON-MIN"
        )
    if not any(isinstance(task.get("data"), dict) for task in tasks):
        raise ValueError(
            f"{file}: a list of annotations that are not those of Label Studio, whose tasks have "
            "data; if they are CreateML's, export the data set as COCO"
        )
    return tasks


def _annotations(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a task that were not skipped; old versions call them completions."""
    found = task.get("annotations", task.get("completions"))
    return [
        annotation
        for annotation in (found if isinstance(found, list) else [])
        if isinstance(annotation, dict)
        and isinstance(annotation.get("result"), list)
        and not annotation.get("was_cancelled")
    ]


def _chosen(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """The one marked as ground truth, or else the last."""
    truths = [annotation for annotation in annotations if annotation.get("ground_truth")]
    return (truths or annotations)[-1]


def _image_values(task: dict[str, Any]) -> list[str]:
    """What may name the image: the upload, and the task's data."""
    data = task.get("data")
    values = [task.get("file_upload"), *(data.values() if isinstance(data, dict) else ())]
    return [value for value in values if isinstance(value, str) and _names_in(value)]


def _agreed(found: list[list[Path]]) -> list[Path]:
    """The images that all names of a task may stand for; if there are none, all of them."""
    common = [path for path in (found or [[]])[0] if all(path in paths for paths in found)]
    return common or [*dict.fromkeys(path for paths in found for path in paths)]


def _names_in(value: str) -> list[str]:
    """The names that an image may have: as it is, without its URL, without an upload's prefix."""
    url = urlsplit(value)
    local = [part[2:] for part in url.query.split("&") if part.startswith("d=")]
    names = [value, *map(unquote, (*local, url.path))]
    names = [name.replace("\\", "/") for name in names if is_image(Path(name))]
    return [found for name in names for found in (name, _without_prefix(name))]


def _without_prefix(name: str) -> str:
    return _UPLOAD_PREFIX.sub("", name.rsplit("/", 1)[-1])


def _labels(region: object) -> list[str]:
    value = region.get("value") if isinstance(region, dict) else None
    found = [value[key] for key in _LABELS if key in value] if isinstance(value, dict) else []
    names = found[0] if found and isinstance(found[0], list) else []
    return [name for name in names if isinstance(name, str)]


def _measured(image: Path) -> tuple[int, int] | None:
    """(height, width) as displayed, on which boxes are drawn; None if the file is damaged."""
    file = read_image_file(image)
    return None if isinstance(file, ValueError) else file.header.size


def _add_region(
    collector: Collector,
    region: dict[str, Any],
    *,
    image_id: int,
    place: str,
    size: tuple[int, int] | None,
) -> None:
    """Add the boxes of a region; `size` is that of the image if the region does not say it."""
    kind, value = region.get("type"), region.get("value")
    place = f"{place}, region {region.get('id', '')} ({kind})"
    if kind in ("brushlabels", "brush"):
        message = f"{place}: painted with the brush; draw rectangles or polygons, or export as COCO"
        collector.add_fault("brush", message, image_id=image_id)
    elif read_number(region.get("image_rotation") or 0) != 0:
        message = (
            f"{place}: drawn on an image turned by {shown(region.get('image_rotation'))} degrees"
        )
        collector.add_fault("turned-image", f"{message}; turn the file itself", image_id=image_id)
    elif not isinstance(value, dict) or not any(key in value for key in _LABELS):
        collector.leave_out(f"results of type {kind}")
    else:
        names = _labels(region)
        for name in names:
            collector.add_box(image_id, name, bbox=_box(region, size), place=place)
        if not names:
            collector.leave_out("regions without a label")


def _box(region: dict[str, Any], size: tuple[int, int] | None) -> Box | None:
    """In pixels; None where a number is missing."""
    size = read_size(region.get("original_height"), region.get("original_width")) or size
    if size is None:
        return None
    height, width = size
    value = region["value"]
    try:
        if "points" in value:
            return around([(x / 100 * width, y / 100 * height) for x, y in value["points"]])
        x, y = value["x"] / 100 * width, value["y"] / 100 * height
        degrees = value.get("rotation") or 0
        if "radiusX" in value:
            radii = value["radiusX"] / 100 * width, value["radiusY"] / 100 * height
            return around_ellipse((x, y), radii, degrees=degrees)
        w, h = value["width"] / 100 * width, value["height"] / 100 * height
        return around_rotated((x, y, w, h), degrees, pivot=(x, y))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
