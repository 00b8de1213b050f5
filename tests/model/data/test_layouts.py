"""Which format a folder has, which splits, and what is said of a folder that is none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model.configs import small
from model.data.data_set import open_data_set
from model.data.formats.source import ALL
from model.data.layouts import find_layout, find_run_layout, require_split, stored_split
from tests.model.data.formats import exports

CONTENT = json.dumps({"images": [], "annotations": [], "categories": []})


def write(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("annotation_file", "image_dir"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/instances_val2014.json", "val2014"),
        ("annotations/instances_val.json", "images"),
        ("annotations/val.json", "images/val"),
        ("val.json", "images"),
        ("val.json", "val"),
        ("valid/_annotations.coco.json", "valid"),
        ("val.json", "."),
        ("annotations/instances_Validation.json", "images/Validation"),  # a subset of CVAT's
    ],
)
def test_common_layouts_of_coco_are_found(
    tmp_path: Path, annotation_file: str, image_dir: str
) -> None:
    write(tmp_path / annotation_file, CONTENT)
    (tmp_path / image_dir).mkdir(parents=True, exist_ok=True)

    source = find_layout(tmp_path).read("val")

    assert (source.file, source.image_dir) == (tmp_path / annotation_file, tmp_path / image_dir)


@pytest.mark.parametrize(
    ("annotation_file", "image_dir"),
    [
        ("instances.json", "images"),
        ("annotations/instances_default.json", "images"),
        ("result.json", "images"),
        ("labels.json", "data"),
        ("_annotations.coco.json", "."),
    ],
)
def test_one_file_of_coco_for_all_images_is_found(
    tmp_path: Path, annotation_file: str, image_dir: str
) -> None:
    write(tmp_path / annotation_file, CONTENT)
    (tmp_path / image_dir).mkdir(parents=True, exist_ok=True)

    source = find_layout(tmp_path).read(ALL)

    assert (source.file, source.image_dir) == (tmp_path / annotation_file, tmp_path / image_dir)


def test_boxes_come_before_the_keypoints_of_a_task(tmp_path: Path) -> None:
    for name in ("instances_default.json", "person_keypoints_default.json"):
        write(tmp_path / "annotations" / name, CONTENT)

    source = find_layout(tmp_path).read(ALL)

    assert source.file == tmp_path / "annotations" / "instances_default.json"


@pytest.mark.parametrize(
    ("writer", "file", "other"),
    [
        (exports.coco, "annotations/instances_val.json", "annotations/val.json"),
        (exports.label_studio_coco, "result.json", "old.json"),
        (exports.yolo_of_roboflow, "data.yaml", "old.yaml"),
        (exports.cvat, "annotations.xml", "old.xml"),
    ],
)
def test_another_file_that_could_have_been_meant_is_told(
    tmp_path: Path, writer: Callable[[Path], None], file: str, other: str
) -> None:
    writer(tmp_path)
    shutil.copy(tmp_path / file, tmp_path / other)

    faults = open_data_set(tmp_path).open("val").annotations.faults

    [fault] = [fault for fault in faults if fault.kind == "other-files"]
    assert f" is read from {Path(file).name}; not read: {Path(other).name}" in fault.message


def test_the_images_of_the_split_come_before_the_common_directory(tmp_path: Path) -> None:
    write(tmp_path / "val.json", CONTENT)
    (tmp_path / "images" / "val").mkdir(parents=True)

    assert find_layout(tmp_path).read("val").image_dir == tmp_path / "images" / "val"


def test_a_split_of_any_name_is_read(tmp_path: Path) -> None:
    write(tmp_path / "annotations" / "instances_minival.json", CONTENT)

    require_split(tmp_path, "minival", val_fraction=None)


def test_a_missing_val_split_is_answered_with_the_way_to_make_one(tmp_path: Path) -> None:
    exports.coco(tmp_path)
    (tmp_path / "annotations" / "instances_val.json").unlink()

    said = (
        r"split 'val'.* train; looked for annotations/instances_val2017\.json, .*VAL_FRACTION=0\.1"
    )
    with pytest.raises(ValueError, match=said):
        require_split(tmp_path, "val", val_fraction=None)


def test_training_on_data_that_is_not_divided_asks_for_the_val_fraction(tmp_path: Path) -> None:
    exports.label_studio(tmp_path)

    with pytest.raises(ValueError, match=r"not divided into splits. VAL_FRACTION=0\.1"):
        find_run_layout(small(), tmp_path, val_fraction=None)
    assert find_run_layout(small(), tmp_path, val_fraction=0.1) is not None


def test_data_that_is_not_divided_is_evaluated_whole(tmp_path: Path) -> None:
    exports.label_studio(tmp_path)

    assert stored_split(find_layout(tmp_path), "val", val_fraction=None) == ALL


def test_a_missing_split_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    exports.voc(tmp_path)

    with pytest.raises(
        ValueError, match=r"split 'test'.*Pascal VOC.*the splits train, val; looked for ImageSets"
    ):
        require_split(tmp_path, "test", val_fraction=None)


def test_a_val_split_cannot_be_made_where_there_is_one(tmp_path: Path) -> None:
    exports.coco(tmp_path)

    with pytest.raises(ValueError, match=r"VAL_FRACTION .* this data set has one"):
        require_split(tmp_path, "train", val_fraction=0.1)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no file"),
        (["train/a.jpg", "train/metadata.jsonl"], r"Hugging Face's imagefolder"),
        (["a.jpg", "export.ndjson"], r"lines of JSON"),
        (["meta.json", "one/ann/a.jpg.json", "one/img/a.jpg"], r"Supervisely: export .* as COCO"),
        (["train.record", "label_map.pbtxt"], r"a table or records"),
        (["a.jpg", "b.jpg"], r"2 \.jpg\n.*images without annotations"),
        (["images/a.jpg", "labels/a.txt"], r"images/: 1 \.jpg\n.*add data\.yaml, or classes\.txt"),
        (["a.jpg", "a.xml"], r"1 \.xml.*\n.*Pascal VOC or CVAT, but no \.xml"),
        (["data.json"], r"JSON of another tool"),
        (["export.zip"], r"an archive: unpack it first"),
        (["train.csv", "a.jpg"], r"a table or records"),
    ],
)
def test_a_folder_of_no_known_format_is_described(
    tmp_path: Path, files: list[str], said: str
) -> None:
    for name in files:
        write(tmp_path / name)

    with pytest.raises(ValueError, match=rf"(?s)known format.*found:.*{said}.*known are COCO"):
        find_layout(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("labels/a.txt", "0 0.5 0.5 0.1 0.1\n", "YOLO without the names of its classes"),
        ("labelTxt/a.txt", "1.0 1.0 9.0 1.0 9.0 9.0 1.0 9.0 ship 0\n", "text files of another"),
        ("label_2/a.txt", "Car 0.00 0 1.55 1 2 3 4 1.5 1.6 3.7 1 1 9 1.6\n", "such as .* KITTI's"),
        ("via.json", '{"_via_settings": {}}', "VGG Image Annotator"),
        ("via.json", '{"a.jpg9": {"regions": [{"shape_attributes": {}}]}}', "VGG Image Annotator"),
    ],
)
def test_the_content_of_a_file_says_what_it_looks_like(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    write(tmp_path / "images" / "a.jpg")
    write(tmp_path / name, text)

    with pytest.raises(ValueError, match=rf"it looks like .*{said}"):
        find_layout(tmp_path)


def test_a_file_is_not_taken_for_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "data.yaml")

    with pytest.raises(ValueError, match="is a file; name the folder that it is in"):
        find_layout(tmp_path / "data.yaml")
