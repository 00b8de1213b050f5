"""labelme: its shapes, groups and lists of classes, and what is wrong with a file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from model.data.check import check_validation
from model.data.data_set import open_data_set
from model.data.split import Split
from tests.model.data.formats import exports
from tests.model.data.formats.exports import write


def shape(kind: Any, *points: Any, label: Any = "bolt", **others: Any) -> dict[str, Any]:
    return {"label": label, "points": [*points], "shape_type": kind, "group_id": None} | others


def read(folder: Path, *shapes: Any, **others: Any) -> Split:
    content: dict[str, Any] = {
        "version": "5.5.0", "flags": {}, "shapes": [*shapes], "imagePath": "a.png",
        "imageData": None, "imageHeight": 48, "imageWidth": 64,
    }  # fmt: skip
    write(folder / "a.json", json.dumps(content | others))
    exports.write_images(folder, {"a.png": []})
    return open_data_set(folder).open("all")


@pytest.mark.parametrize(
    ("found", "bbox"),
    [
        (shape("rectangle", [24.0, 16.0], [4.0, 6.0]), (4, 6, 20, 10)),
        (shape("polygon", [4, 6], [24, 6], [14, 16]), (4, 6, 20, 10)),
        (shape("circle", [20, 20], [23, 24]), (15, 15, 10, 10)),
        (shape("mask", [4, 6], [23, 15], mask="iVBORw0KGgo="), (4, 6, 20, 10)),
        ({"label": "bolt", "points": [[4, 6], [24, 6], [14, 16]]}, (4, 6, 20, 10)),
        (shape("oriented_rectangle", [4, 9], [18, 6], [24, 13], [10, 16]), (4, 6, 20, 10)),
        (shape("rotation", [4, 9], [18, 6], [24, 13], [10, 16], direction=0.4), (4, 6, 20, 10)),
    ],
)
def test_the_box_around_a_shape_is_taken(
    tmp_path: Path, found: dict[str, Any], bbox: tuple[float, ...]
) -> None:
    boxes = read(tmp_path, found).annotations.boxes

    assert [box.bbox for box in boxes] == [pytest.approx(bbox)]


def test_shapes_of_a_class_in_one_group_are_one_object(tmp_path: Path) -> None:
    halves = [shape("rectangle", [x, 6], [x + 4, 16], group_id=1) for x in (4, 20)]
    other = shape("rectangle", [1, 1], [9, 9], group_id=1, label="nut")

    found = read(tmp_path, *halves, other).annotations

    assert [box.bbox for box in found.boxes] == [(4, 6, 20, 10), (1, 1, 8, 8)]
    assert [fault.message for fault in found.faults] == [
        "shapes that are one object with others, by class and group_id: 2, such as in a.json"
    ]


def test_an_image_in_the_file_before_the_shapes_hides_nothing(tmp_path: Path) -> None:
    found = shape("rectangle", [4, 6], [24, 16])
    read(tmp_path, found)
    content = {"imageData": "A" * 400_000, "imagePath": "b.png", "shapes": [found]}
    write(tmp_path / "b.json", json.dumps(content))
    exports.write_images(tmp_path, {"b.png": []})

    assert len(open_data_set(tmp_path).open("all").annotations.boxes) == 2


def test_an_image_whose_name_macos_decomposed_is_found(tmp_path: Path) -> None:
    exports.write_images(tmp_path / "images", {"a\u0308.png": []})

    read(tmp_path, imagePath="..\\images\\\xe4.png")
    (tmp_path / "a.png").unlink()

    split = open_data_set(tmp_path).open("all")

    assert split.files[1].path == tmp_path / "images" / "a\u0308.png"


def test_a_file_that_names_the_image_of_another_is_refused(tmp_path: Path) -> None:
    exports.write_images(tmp_path, {"b.png": []})

    split = read(tmp_path, shape("rectangle", [4, 6], [24, 16]), imagePath="b.png")

    [fault] = [fault for fault in split.annotations.faults if fault.fatal]
    assert "a.json is of a.png by its name, but says imagePath b.png" in fault.message


def test_files_that_are_not_labelmes_are_counted(tmp_path: Path) -> None:
    for name, text in (("b.json", ""), ("settings.json", '{"theme": "dark"}'), ("._a.json", "")):
        write(tmp_path / name, text)

    faults = read(tmp_path, shape("rectangle", [4, 6], [24, 16])).annotations.faults

    assert [fault.message for fault in faults] == [
        "left out: JSON files that are empty or not labelme's: 2, such as b.json"
    ]


def test_shapes_without_a_box_are_left_out_and_counted(tmp_path: Path) -> None:
    split = read(tmp_path, shape("linestrip", [1, 2], [3, 4]), shape([], [1, 2]))

    assert split.annotations.boxes == ()
    assert split.annotations.faults[0].message == (
        "left out: shapes of type linestrip (1), shapes of type [] (1)"
    )


def test_classes_are_in_the_order_of_the_list_of_labels(tmp_path: Path) -> None:
    write(tmp_path / "labels.txt", "__ignore__\n_background_\nwasher\nbolt\n")

    split = read(tmp_path, shape("rectangle", [4, 6], [24, 16]))

    assert [(i.id, i.name) for i in split.annotations.classes] == [(0, "washer"), (1, "bolt")]
    assert split.annotations.boxes[0].category_id == 1


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (shape("rectangle", [4, 6]), r"bbox is \[4\.0, 6\.0, 0\.0, 0\.0\]|is empty"),
        (shape("rectangle"), r"a\.json, shape 1: bbox cannot be read"),
        (shape("rectangle", [4, float("nan")], [5, 6]), r"a\.json, shape 1: bbox cannot be read"),
        (shape("circle", [4, 6]), r"bbox cannot be read"),
        (shape("polygon", [1], [2, 3]), r"bbox cannot be read"),
        (shape("polygon", 1, 2), r"bbox cannot be read"),
        (shape("rectangle", [4, 6], [24, 16], label=None), r"an object without a class"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, found: dict[str, Any], said: str
) -> None:
    faults = check_validation(read(tmp_path, found))

    assert any(re.search(said, fault.message) for fault in faults)


@pytest.mark.parametrize("shapes", [None, {}, [1], "x"])
def test_a_file_without_a_list_of_shapes_is_refused(tmp_path: Path, shapes: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.json: expected labelme's list of shapes"):
        read(tmp_path, shapes=shapes)


def test_an_image_without_a_size_is_measured(tmp_path: Path) -> None:
    split = read(tmp_path, shape("rectangle", [4, 6], [24, 16]), imageHeight=None, imageWidth=None)

    assert [fault for fault in check_validation(split) if fault.fatal] == []
    assert split.size(1) == (48, 64)
