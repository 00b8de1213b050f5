"""Label Studio's JSON: its regions, its annotators, its names of images, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from model.data.check import check_validation
from model.data.data_set import open_data_set
from model.data.layouts import find_layout
from model.data.split import Split
from tests.model.data.formats import exports
from tests.model.data.formats.exports import write

SIZE = {"original_width": 64, "original_height": 48}


def region(kind: str, value: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {**SIZE, "type": kind, "id": "r1", "value": value, **others}


def rectangle(**others: Any) -> dict[str, Any]:
    value = {"x": 25, "y": 25, "width": 50, "height": 50, "rectanglelabels": ["bolt"]}
    return region("rectanglelabels", value | others)


def task(*regions: Any, **others: Any) -> dict[str, Any]:
    annotation = {"result": [*regions], "was_cancelled": False}
    data = {"image": "/data/upload/1/1a2b3c4d-a.png"}
    return {"id": 7, "annotations": [annotation], "data": data} | others


def read(folder: Path, *tasks: dict[str, Any]) -> Split:
    write(folder / "export.json", json.dumps(tasks))
    exports.write_images(folder / "images", {"a.png": []})
    return open_data_set(folder).open("all")


@pytest.mark.parametrize(
    ("found", "bbox"),
    [
        (rectangle(), (16, 12, 32, 24)),
        (rectangle(x=50, y=0, width=50, height=25, rotation=90), (20, 0, 12, 32)),
        (
            region(
                "polygonlabels", {"points": [[25, 25], [75, 25], [50, 75]], "polygonlabels": ["b"]}
            ),
            (16, 12, 32, 24),
        ),
        (
            region(
                "ellipselabels",
                {
                    "x": 50,
                    "y": 50,
                    "radiusX": 25,
                    "radiusY": 25,
                    "rotation": 0,
                    "ellipselabels": ["b"],
                },
            ),
            (16, 12, 32, 24),
        ),
        (
            region("labels", {"x": 25, "y": 25, "width": 50, "height": 50, "labels": ["b"]}),
            (16, 12, 32, 24),
        ),
    ],
)
def test_the_box_around_a_region_is_taken(
    tmp_path: Path, found: dict[str, Any], bbox: tuple[float, ...]
) -> None:
    boxes = read(tmp_path, task(found)).annotations.boxes

    assert [box.bbox for box in boxes] == [pytest.approx(bbox)]


def test_of_several_annotations_the_last_that_was_not_skipped_counts(tmp_path: Path) -> None:
    first, last, skipped = (
        {"result": [rectangle(x=x)], "was_cancelled": x == 3} for x in (1, 2, 3)
    )

    split = read(tmp_path, task(annotations=[first, last, skipped]))

    assert split.annotations.boxes[0].bbox[0] == 0.02 * 64
    assert "annotations of tasks that have a later one (1)" in split.annotations.faults[0].message


def test_the_annotation_marked_as_truth_comes_before_later_ones(tmp_path: Path) -> None:
    truth: dict[str, Any] = {"result": [rectangle()], "ground_truth": True}
    later: dict[str, Any] = {"result": []}

    split = read(tmp_path, task(annotations=[truth, later]))

    assert len(split.annotations.boxes) == 1


def test_tasks_that_nobody_annotated_are_left_out(tmp_path: Path) -> None:
    guess = {"result": [rectangle()], "score": 0.9}

    split = read(
        tmp_path, task(rectangle()), task(annotations=[]), task(annotations=[], predictions=[guess])
    )

    assert len(split.images) == 1
    assert split.annotations.faults[0].message == (
        "left out: tasks without an annotation (1), tasks without an annotation, but with "
        "predictions (1)"
    )


@pytest.mark.parametrize(
    "names",
    [
        {"data": {"image": "/data/local-files/?d=my%20photos\\a.png"}},
        {"data": {"text": "see", "picture": "https://example.org/1/a.png?token=1"}},
        {"data": {"image": "s3://bucket/photos/a.png"}},
        {"data": {"image": "https://example.org/photos/a.png?signature=1&d=2"}},
        {"data": {"image": "gone.png"}, "file_upload": "0f9e8d7c-a.png"},
        {"data": {"image": "/data/local-files/?d=photos/a.png", "page": 1}},
    ],
)
def test_the_image_is_found_behind_its_address(tmp_path: Path, names: dict[str, Any]) -> None:
    split = read(tmp_path, task(rectangle(), **names))

    assert split.files[1].path == tmp_path / "images" / "a.png"


@pytest.mark.parametrize("name", ["a+b.png", "a#1.png", "a%41.png", "a?b.png", "a b.png"])
@pytest.mark.parametrize("address", ["/data/local-files/?d=photos/", "/data/upload/1/1a2b3c4d-"])
def test_an_image_may_have_a_name_that_means_something_in_addresses(
    tmp_path: Path, address: str, name: str
) -> None:
    exports.write_images(tmp_path, {name: []})

    split = read(tmp_path, task(rectangle(), data={"image": address + name}))

    assert split.files[1].path == tmp_path / name


def test_boxes_of_a_task_with_several_images_are_refused(tmp_path: Path) -> None:
    exports.write_images(tmp_path, {"b.png": []})
    data = {"before": "/data/upload/1/1a2b3c4d-a.png", "after": "/data/upload/1/1a2b3c4d-b.png"}

    faults = check_validation(read(tmp_path, task(rectangle(), data=data)))

    assert [fault.kind for fault in faults if fault.fatal] == ["several-images"]
    assert "task 7 names several images, images/a.png, b.png" in faults[0].message


@pytest.mark.parametrize("stated", [0, None, 64])
def test_a_size_that_is_missing_is_that_of_the_image(tmp_path: Path, stated: int | None) -> None:
    split = read(tmp_path, task(rectangle() | {"original_width": stated}))

    assert [box.bbox for box in split.annotations.boxes] == [(16, 12, 32, 24)]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (region("brushlabels", {"format": "rle"}), r"task 7, region r1 .*painted with the brush"),
        (rectangle() | {"image_rotation": 90}, r"drawn on an image turned by 90 degrees"),
        (rectangle(x="left"), r"task 7, region r1 \(rectanglelabels\): bbox cannot be read"),
        (rectangle(width=None), "cannot be read"),
        (rectangle(x=float("nan")), r"bbox is \[NaN"),
        (region("polygonlabels", {"points": [], "polygonlabels": ["b"]}), "cannot be read"),
        (
            region("polygonlabels", {"points": [[1]], "polygonlabels": ["b"]}),
            "cannot be read",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, found: dict[str, Any], said: str
) -> None:
    split = read(tmp_path, task(found, rectangle()))

    faults = [fault for fault in check_validation(split) if fault.fatal]

    assert len(faults) == 1
    assert re.search(said, faults[0].message)


def test_results_that_are_not_regions_are_counted(tmp_path: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["sharp"]}}

    split = read(tmp_path, task(rectangle(), choice, None, rectangle(rectanglelabels=[])))

    assert len(split.annotations.boxes) == 1
    assert split.annotations.faults[0].message == (
        "left out: results of type choices (1), regions without a label (1)"
    )


def test_the_short_form_of_the_export_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "min.json", json.dumps([{"image": "a.png", "id": 1, "annotation_id": 2}]))

    with pytest.raises(ValueError, match=r"export as JSON, not as JSON-MIN"):
        open_data_set(tmp_path).open("all")


def test_a_list_of_another_tool_is_refused_by_name(tmp_path: Path) -> None:
    box = {"label": "bolt", "coordinates": {"x": 9, "y": 9, "width": 4, "height": 4}}
    content = [{"image": "a.png", "annotations": [box]}]
    write(tmp_path / "_annotations.createml.json", json.dumps(content))

    with pytest.raises(ValueError, match="if they are CreateML's, export the data set as COCO"):
        open_data_set(tmp_path).open("all")


@pytest.mark.parametrize("name", ["train.json", "result.json"])
def test_a_list_is_not_taken_for_cocos_format_by_its_name(tmp_path: Path, name: str) -> None:
    read(tmp_path, task(rectangle()))
    (tmp_path / "export.json").rename(tmp_path / name)

    assert open_data_set(tmp_path).layout.name == f"Label Studio ({name})"


def test_two_exports_in_one_folder_are_refused_by_name(tmp_path: Path) -> None:
    read(tmp_path, task(rectangle()))
    write(tmp_path / "second.json", json.dumps([task()]))

    with pytest.raises(ValueError, match=r"found export\.json, second\.json; keep one"):
        find_layout(tmp_path)
