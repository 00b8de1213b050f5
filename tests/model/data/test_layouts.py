"""Where annotations and images are found."""

import pytest

from model.data.layouts import find_image, locate


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
        ("instances.json", "images"),
        ("valid/_annotations.coco.json", "valid"),
        ("result.json", "images"),
        ("val.json", "."),
    ],
)
def test_common_layouts_are_found(tmp_path, annotation_file, image_dir):
    (tmp_path / annotation_file).parent.mkdir(exist_ok=True)
    (tmp_path / annotation_file).touch()
    (tmp_path / image_dir).mkdir(parents=True, exist_ok=True)

    found = locate(tmp_path, "val")

    assert found == (tmp_path / annotation_file, tmp_path / image_dir)


def test_the_images_of_the_split_come_before_the_common_directory(tmp_path):
    (tmp_path / "val.json").touch()
    (tmp_path / "images" / "val").mkdir(parents=True)

    assert locate(tmp_path, "val")[1] == tmp_path / "images" / "val"


def test_what_was_looked_for_is_listed(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)split 'val'.*instances_val2017.json.*val.json"):
        locate(tmp_path, "val")


@pytest.mark.parametrize(
    ("file_name", "stored"),
    [
        ("1.png", "images/1.png"),
        ("day/1.png", "images/day/1.png"),
        ("images/1.png", "images/1.png"),
        ("images\\1.png", "images/1.png"),
        ("day\\1.png", "images/day/1.png"),
        ("upload/7/1.png", "images/1.png"),
        ("/data/upload/1.png", "images/1.png"),
        ("odd\\name.png", "images/odd\\name.png"),
    ],
)
def test_an_image_is_found_behind_the_folders_that_a_tool_writes(tmp_path, file_name, stored):
    (tmp_path / stored).parent.mkdir(parents=True)
    (tmp_path / stored).touch()

    assert find_image(file_name, tmp_path / "images") == tmp_path / stored


def test_an_image_that_is_nowhere_is_missing_with_the_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images/day/1\.png.*nor .*images/1\.png"):
        find_image("day/1.png", tmp_path / "images")
