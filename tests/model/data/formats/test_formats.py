"""One data set, exported by every tool, is read as the same images, boxes and classes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model.data.check import check_validation
from model.data.data_set import open_data_set
from model.data.layouts import find_layout
from model.data.split import Split
from tests.model.data.formats import exports


def content(split: Split) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """Class and box of every object, by the name of the image's file."""
    names = {info.id: info.name for info in split.annotations.classes}
    found: dict[str, list[tuple[str, tuple[float, ...]]]] = {
        split.files[image.id].path.name: [] for image in split.annotations.images
    }
    for box in split.annotations.boxes:
        rounded = tuple(round(value, 3) + 0.0 for value in box.bbox)
        found[split.files[box.image_id].path.name].append((names[box.category_id], rounded))
    return found


@pytest.mark.parametrize("export", exports.DIVIDED)
@pytest.mark.parametrize("name", ["train", "val"])
def test_every_tool_says_the_same_about_a_split(
    export: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    export(tmp_path)

    split = open_data_set(tmp_path).open(name)

    assert content(split) == exports.SPLITS[name]
    assert [info.name for info in split.annotations.classes] == exports.CLASSES
    assert [fault for fault in check_validation(split) if fault.fatal] == []


@pytest.mark.parametrize("export", exports.WHOLE)
def test_every_tool_that_does_not_divide_says_the_same_of_all_images(
    export: Callable[[Path], None], tmp_path: Path
) -> None:
    export(tmp_path)

    split = open_data_set(tmp_path).open("all")

    assert content(split) == exports.ALL
    assert [info.name for info in split.annotations.classes] == exports.CLASSES
    assert [fault for fault in check_validation(split) if fault.fatal] == []


@pytest.mark.parametrize(
    ("export", "name"),
    [
        (exports.coco, "COCO"),
        (exports.coco_of_roboflow, "COCO (Roboflow)"),
        (exports.yolo_of_roboflow, "YOLO (data.yaml)"),
        (exports.yolo_of_darknet, "YOLO (obj.names)"),
        (exports.voc, "Pascal VOC (corners are pixels from 1)"),
        (exports.voc_of_roboflow, "Pascal VOC (corners are edges from 0)"),
        (exports.cvat, "CVAT (annotations.xml)"),
        (exports.labelme, "labelme"),
        (exports.label_studio, "Label Studio (project-1-at-2025-01-02-03-04-0a1b2c3d.json)"),
    ],
)
def test_a_format_is_recognised_and_named(
    export: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    export(tmp_path)

    assert find_layout(tmp_path).name == name


def test_an_archive_that_was_unpacked_into_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    exports.voc(tmp_path / "VOCdevkit" / "VOC2012")

    assert open_data_set(tmp_path).layout.has("train")


def test_the_line_on_a_data_set_names_format_classes_and_images(tmp_path: Path) -> None:
    exports.yolo_of_roboflow(tmp_path)
    data_set = open_data_set(tmp_path)

    line = data_set.describe([data_set.open("train"), data_set.open("val")])

    assert line == "data set: YOLO (data.yaml), classes: 3, images: 3 + 2"
