"""YOLO: a text file of labels for every image, and the classes in a YAML file or a list.

A line is `class cx cy w h` or a polygon, `class x y x y x y ...`, in fractions of the image's
sides. The splits are given in the YAML file of Roboflow and Ultralytics, or are folders or lists
of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from model.data.faults import shown
from model.data.formats.image_listing import images_below, is_image, unread_below
from model.data.formats.source import (
    ALL,
    Collector,
    Source,
    names_of,
    other_files,
    read_lines,
    read_text,
    split_folder,
    text_files,
)  # fmt: skip
from model.data.formats.yolo_labels import label_file_of, misplaced_label, strays_beside
from model.data.formats.yolo_line import box_of, keypoint_shape, parse_line
from model.data.formats.yolo_yaml import YoloYaml, find_yaml
from model.data.image_file import ImageFile, read_all
from model.data.place import OutsideError, is_inside, spellings

CLASS_FILES = (
    "classes.txt", "obj.names", "labels/classes.txt", "train/classes.txt", "train/_darknet.labels"
)  # fmt: skip
_SEEN_IMAGES = 1000  # until one has labels


@dataclass(frozen=True)
class YoloData:
    """A data set in YOLO's format; class ids are the indices of the label files."""

    directory: Path
    name: str
    class_file: Path
    class_names: dict[int, str]
    yaml: YoloYaml | None

    def has(self, split: str) -> bool:
        """Whether the split is named; if none is, all images are one split."""
        if split == ALL:
            return not any(self._places(name) for name in ("train", "val", "test"))
        return bool(self._places(split))

    def looked_for(self, split: str) -> str:
        """What the YAML file says, or the folders and lists."""
        if self.yaml is not None:
            return f"{split} in {self.yaml.file.name}, which {self.yaml.describe(split)}"
        name = names_of(split)[0]
        return f"images/{name}/, {name}/, {name}.txt"

    def read(self, split: str) -> Source:
        """The images of a split with the boxes of their label files."""
        images = self._images(split)
        files = self._read_files(images)
        collector = Collector(
            self.class_file, image_dir=self.directory, class_names=self.class_names
        )
        read: dict[Path, Path] = {}  # label file -> image
        unlabelled, shared = [], []
        polygons: list[list[float]] = []
        for path in tqdm(images, desc="reading labels", unit=" files", leave=False):
            label_file = label_file_of(path)
            place = _relative(label_file, self.directory)
            size = _size(files[path])
            image_id = collector.add_image(path, size, place=place)
            if not (label_file.is_file() and is_inside(label_file, self.directory)):
                unlabelled.append(path)
                continue
            if read.setdefault(label_file, path) != path:
                shared.append(path)
            polygons += self._read_labels(collector, image_id, label_file, size)
        if self.yaml is not None:
            collector.add(other_files(self.yaml.file, self.yaml.others, split=split))
        if (other := _other_list(self)) is not None:
            collector.add_note("other-class-list", other)
        if unlabelled:
            collector.add_note("no-label-file", _without_labels(len(unlabelled), images))
            self._tell_misplaced(collector, unlabelled)
        if shared:
            message = _of_one_label_file(shared, read, self.directory)
            collector.add_note("shared-label-file", message)
        if (shape := keypoint_shape(polygons)) is not None:
            collector.add_fault("keypoints", _poses(len(polygons), *shape))
        if turned := [path for path in images if _is_turned(files[path])]:
            collector.add_note("turned-images", _turned(turned, self.directory))
        if split == ALL or all(place.is_dir() for place in self._places(split)):
            collector.leave_out("label files without an image", len(strays_beside({*read})))
            self._note_other_formats(collector, split)
        return replace(collector.source(), image_files=files)

    def _read_files(self, images: list[Path]) -> dict[Path, ImageFile | ValueError]:
        """Every image file; those outside of the data set are faults and not read."""
        inside = read_all([path for path in images if is_inside(path, self.directory)])
        outside = [path for path in images if path not in inside]
        return inside | {path: OutsideError(path, self.directory) for path in outside}

    def _tell_misplaced(self, collector: Collector, unlabelled: list[Path]) -> None:
        """Refuse label files in folders of YOLO's that belong to no image; others may be old."""
        if (found := misplaced_label(unlabelled, self.directory)) is None:
            return
        image, label_file = (_relative(path, self.directory) for path in found)
        expected = _relative(label_file_of(found[0]), self.directory)
        message = f"{image} has no label file {expected}, but there is {label_file}: "
        if {"labels", "images"} & {*Path(label_file).parts}:
            remedy = "move label files to where the folders of their images say, or delete them"
            collector.add_fault("misplaced-labels", message + remedy)
        else:
            message += "it is not read, and the image is one without objects"
            collector.add_note("misplaced-labels", message)

    def _note_other_formats(self, collector: Collector, split: str) -> None:
        places = [self.directory] if split == ALL else self._places(split)
        if others := [path for place in places for path in unread_below(place)]:
            message = (
                f"left out: images of formats that are not read: {len(others)}, such as "
                f"{_relative(others[0], self.directory)}; convert them to JPEG or PNG"
            )
            collector.add_note("other-formats", message)

    def _read_labels(
        self, collector: Collector, image_id: int, file: Path, size: tuple[int, int] | None
    ) -> list[list[float]]:
        """Add the boxes of a label file; returns its polygons."""
        has_points = self.yaml is not None and self.yaml.has_keypoints
        polygons = []
        try:
            lines = read_text(file).splitlines()
        except ValueError as error:
            collector.add_fault("malformed", str(error), image_id=image_id)
            return []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{_relative(file, self.directory)}, line {number}"
            try:
                label, values = parse_line(line, has_points=has_points)
                if label not in self.class_names:
                    raise ValueError(
                        f"class {label}; the classes of {self.class_file.name} are "
                        f"{min(self.class_names)} to {max(self.class_names)}, "
                        f"{len(self.class_names)} in all"
                    )
            except ValueError as error:
                collector.add_fault("malformed", f"{place}: {error}", image_id=image_id)
                continue
            if len(values) > 4:
                polygons.append(values)
            if size is not None:  # else the image has a fault of its own
                (x, y, w, h), (height, width) = box_of(values), size
                bbox = (x * width, y * height, w * width, h * height)
                collector.add_box(image_id, label, bbox=bbox, place=place)
        return polygons

    def _places(self, split: str) -> list[Path]:
        """The folders and lists of a split."""
        if self.yaml is not None:
            return self.yaml.places(split)
        lists = [self._lists[name] for name in names_of(split) if name in self._lists]
        folders = [split_folder(self.directory, split)]
        if (self.directory / "images").is_dir():
            folders.insert(0, split_folder(self.directory / "images", split))
        found = [place for place in (*folders, *lists) if place is not None and place.exists()]
        return found[:1]

    @cached_property
    def _lists(self) -> dict[str, Path]:
        """What may be lists of images, by their name."""
        return text_files(self.directory)

    def _images(self, split: str) -> list[Path]:
        if split == ALL:
            return images_below(self.directory)
        images = [image for place in self._places(split) for image in self._images_at(place)]
        if not images:
            places = ", ".join(str(place) for place in self._places(split))
            raise ValueError(f"{self.class_file}: split {split!r}: no image in {places}")
        return list(dict.fromkeys(images))

    def _images_at(self, place: Path) -> Iterator[Path]:
        """The images in a folder, or in a list with a path on every line."""
        if place.is_dir():
            yield from images_below(place)
            return
        if is_image(place):
            yield place
            return
        for line in read_lines(place):
            yield self._find_listed(line.replace("\\", "/"), place.parent)

    def _find_listed(self, name: str, base: Path) -> Path:
        """The image of a line: below one of the folders, even if a tool put others before it."""
        all_parts = [Path(spelling).parts for spelling in spellings(name)]
        tails = [Path(*parts[start:]) for parts in all_parts for start in range(len(parts))]
        places = [folder / tail for tail in tails for folder in (base, self.directory)]
        there = [place for place in places if place.is_file()]
        inside = (place for place in there if is_inside(place, self.directory))
        return next(inside, (there or places)[0])


def find(data_dir: Path) -> YoloData | None:
    """The data set in a folder, if it has YOLO's YAML file, or a list of classes and labels."""
    yaml = find_yaml(data_dir)
    if yaml is not None:
        return YoloData(data_dir, f"YOLO ({yaml.file.name})", yaml.file, yaml.class_names, yaml)
    class_file = _class_file_in(data_dir)
    if class_file is None or not _has_labels(data_dir):
        return None
    names = _read_classes(class_file)
    return YoloData(data_dir, f"YOLO ({class_file.name})", class_file, names, None)


def _class_file_in(data_dir: Path) -> Path | None:
    """The list of classes in a folder, with a name on every line."""
    candidates = [data_dir / name for name in CLASS_FILES] + sorted(data_dir.glob("*.names"))
    return next((path for path in candidates if path.is_file()), None)


def _read_classes(file: Path) -> dict[int, str]:
    """The names by index, which is the number of the line; only the end may have empty lines."""
    names = read_text(file).rstrip().splitlines()
    if not names:
        raise ValueError(f"{file}: expected the name of a class on every line; it is empty")
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise ValueError(
                f"{file}: line {number} is empty, and the number of a line is the index of its "
                "class: write a name there, or delete the line if the label files do not count it"
            )
    return {index: name.strip() for index, name in enumerate(names)}


def _has_labels(data_dir: Path) -> bool:
    images = islice(images_below(data_dir), _SEEN_IMAGES)
    return any(label_file_of(image).is_file() for image in images)


def _is_turned(file: ImageFile | ValueError) -> bool:
    """Whether EXIF makes rows of columns, so that its size as displayed is not that as stored."""
    return isinstance(file, ImageFile) and file.header.stored_size != file.header.size


def _turned(images: list[Path], directory: Path) -> str:
    return (
        f"images turned by their EXIF orientation: {len(images)}, such as "
        f"{_relative(images[0], directory)}; their boxes were read as parts of the image as "
        "displayed: make sure that they were drawn on it"
    )


def _size(file: ImageFile | ValueError) -> tuple[int, int] | None:
    """(height, width) as displayed; None if the file cannot be read."""
    return None if isinstance(file, ValueError) else file.header.size


def _of_one_label_file(shared: list[Path], read: dict[Path, Path], directory: Path) -> str:
    first = read[label_file_of(shared[0])]
    return (
        f"images with the label file of another: {len(shared)}, such as "
        f"{_relative(shared[0], directory)} with that of {_relative(first, directory)}: its boxes "
        "were taken for both"
    )


def _without_labels(count: int, images: list[Path]) -> str:
    return f"images without a label file, taken as images without objects: {count} of {len(images)}"


def _other_list(data: YoloData) -> str | None:
    """What to say if a list of classes is beside the YAML file and says something else."""
    file = _class_file_in(data.directory)
    if data.yaml is None or file is None:
        return None
    named = list(data.class_names.values())
    try:
        listed = list(_read_classes(file).values())
    except ValueError:  # empty or damaged, and it does not count
        return None
    if listed == named:
        return None
    return (
        f"{file.name} lists the classes {shown(listed)}, and {data.class_file.name}, which counts, "
        f"{shown(named)}: make sure that the numbers in the label files are those of "
        f"{data.class_file.name}"
    )


def _poses(num_lines: int, num_points: int, dimensions: int) -> str:
    return (
        f"all {num_lines} lines that are not boxes look like a box and keypoints, not like a "
        f"polygon: for a data set of poses, write kpt_shape: [{num_points}, {dimensions}] into "
        "data.yaml, with the names of the classes"
    )


def _relative(file: Path, directory: Path) -> str:
    return (file.relative_to(directory) if file.is_relative_to(directory) else file).as_posix()
