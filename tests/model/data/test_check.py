"""The check of a data set names every fault and changes nothing."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from bundle.manifest import ClassInfo
from model.data.check import check_dataset, describe, main
from model.data.coco import locate


@pytest.fixture
def sound(tmp_path):
    """A sound data set of two images, as (content, write): change the one, then call the other."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / name)
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 40, "width": 60},
            {"id": 2, "file_name": "b.png", "height": 40, "width": 60},
        ],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 5, "bbox": [1, 2, 30, 20]},
            {"id": 12, "image_id": 1, "category_id": 6, "bbox": [0, 0, 60.04, 40]},
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
    }

    def write() -> tuple[Path, Path]:
        (tmp_path / "train.json").write_text(json.dumps(content))
        return tmp_path / "train.json", tmp_path / "images"

    return content, write


def test_a_sound_data_set_has_no_fault(sound):
    _, write = sound

    faults = check_dataset(*write())

    assert faults == []
    assert describe(faults) == "no faults"


def test_real_annotations_have_no_fault():
    assert check_dataset(*locate(Path("tests/data/coco_fixture12"), "train")) == []


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        ([1, 2, 0, 5], "empty-box"),
        ([1, 2, 5, -5], "empty-box"),
        ([60, 2, 5, 5], "box-outside"),
        ([1, -9, 5, 9], "box-outside"),
        ([1, 2, 5, 0.5], "thin-box"),
        ([-3, 2, 9, 9], "box-partly-outside"),
        ([1, 2, 59.5, 5], "box-partly-outside"),
    ],
)
def test_a_bad_box_is_reported_with_what_training_does(sound, bbox, kind):
    content, write = sound
    content["annotations"][1]["bbox"] = bbox

    (fault,) = check_dataset(*write())

    assert (fault.kind, fault.image_id, fault.annotation_id) == (kind, 1, 12)
    assert not fault.fatal
    assert str(bbox) in fault.message
    assert fault.message.endswith(("not trained on", "clipped to it"))


@pytest.mark.parametrize(
    ("section", "position", "change", "kind"),
    [
        ("annotations", 1, {"bbox": [1, 2, 3]}, "malformed"),
        ("annotations", 1, {"bbox": [1, 2, 3, math.nan]}, "malformed"),
        ("annotations", 1, {"bbox": [1, 2, 3, math.inf]}, "malformed"),
        ("annotations", 1, {"bbox": None}, "malformed"),
        ("annotations", 1, {"bbox": [1, 2, 3, "4"]}, "malformed"),
        ("annotations", 1, {"area": "large"}, "malformed"),
        ("annotations", 1, {"image_id": "1"}, "malformed"),
        ("annotations", 1, {"category_id": 7}, "unknown-category"),
        ("annotations", 1, {"image_id": 3}, "unknown-image"),
        ("annotations", 1, {"id": 11}, "duplicate-annotation-id"),
        ("images", 1, {"id": 1}, "duplicate-image-id"),
        ("images", 1, {"file_name": "a.png"}, "duplicate-file"),
        ("images", 1, {"file_name": "c.png"}, "missing-file"),
        ("images", 1, {"file_name": "."}, "missing-file"),
        ("images", 1, {"height": 60, "width": 40}, "other-size"),
        ("images", 1, {"height": None}, "malformed"),
        ("categories", 1, {"name": "cat"}, "duplicate-category-name"),
        ("categories", 1, {"name": None}, "malformed"),
    ],
)
def test_what_would_make_training_wrong_is_fatal(sound, section, position, change, kind):
    content, write = sound
    content[section][position].update(change)

    faults = check_dataset(*write())

    assert [fault.kind for fault in faults] == [kind]
    assert faults[0].fatal


def test_a_duplicate_category_id_is_fatal(sound):
    content, write = sound
    content["categories"].append({"id": 5, "name": "cow"})

    assert [fault.kind for fault in check_dataset(*write())] == ["duplicate-category-id"]


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_an_empty_list_is_fatal(sound, section):
    content, write = sound
    content[section].clear()

    fault = next(f for f in check_dataset(*write()) if f.kind == f"no-{section}")

    assert fault.fatal


def test_a_data_set_with_nothing_to_train_on_is_fatal(sound):
    content, write = sound
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [1, 1, 0, 0]

    faults = check_dataset(*write())

    assert {fault.kind for fault in faults if fault.fatal} == {"no-targets"}


def test_an_image_is_measured_as_displayed(sound):
    _, write = sound
    annotation_file, image_dir = write()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (60, 40)).save(image_dir / "a.png", exif=exif)

    (fault,) = check_dataset(annotation_file, image_dir)

    assert (fault.kind, fault.image_id) == ("other-size", 1)
    assert "40 x 60 pixels as displayed" in fault.message


@pytest.mark.parametrize("damage", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_an_unreadable_image_is_fatal(sound, damage):
    _, write = sound
    annotation_file, image_dir = write()
    (image_dir / "b.png").write_bytes(damage)

    (fault,) = check_dataset(annotation_file, image_dir)

    assert (fault.kind, fault.image_id, fault.fatal) == ("unreadable-image", 2, True)


def test_a_tiny_image_is_reported(sound):
    content, write = sound
    content["images"][1].update(height=31, width=33)
    annotation_file, image_dir = write()
    Image.new("RGB", (33, 31)).save(image_dir / "b.png")

    (fault,) = check_dataset(annotation_file, image_dir)

    assert (fault.kind, fault.image_id, fault.fatal) == ("tiny-image", 2, False)


def test_unreadable_annotations_are_one_fatal_fault(tmp_path):
    (fault,) = check_dataset(tmp_path / "absent.json", tmp_path)

    assert fault.fatal
    assert "absent.json" in fault.message


def test_categories_must_be_the_expected_ones(sound):
    _, write = sound
    annotations, images = write()
    cat, dog = ClassInfo(id=5, name="cat"), ClassInfo(id=6, name="dog")

    (fault,) = check_dataset(annotations, images, classes=[cat, ClassInfo(id=6, name="cow")])

    assert fault.kind == "other-categories"
    assert "not expected: 6 dog; absent: 6 cow" in fault.message
    assert check_dataset(annotations, images, classes=[dog, cat]) == []


def test_every_fault_is_found_in_one_pass(sound):
    content, write = sound
    content["images"][1]["file_name"] = "c.png"
    content["annotations"][0]["category_id"] = 9
    content["annotations"][1]["bbox"] = [-5, 0, 10, 10]

    kinds = [fault.kind for fault in check_dataset(*write())]

    assert kinds == ["missing-file", "unknown-category", "box-partly-outside"]


def test_a_report_may_be_shortened_but_counts_all(sound):
    content, write = sound
    content["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 5, "bbox": [-5, 0, 10, 10]} for i in range(1, 8)
    ]

    report = describe(check_dataset(*write()), limit=2)

    assert report.count("annotation ") == 2
    assert report.endswith("7 faults, 0 fatal: 7 box-partly-outside")


@pytest.mark.parametrize(("file_name", "status"), [("b.png", 0), ("c.png", 1)])
def test_the_command_exits_with_1_only_for_fatal_faults(sound, monkeypatch, file_name, status):
    content, write = sound
    content["images"][1]["file_name"] = file_name
    content["annotations"][1]["bbox"] = [-5, 0, 10, 10]
    annotation_file, _ = write()
    monkeypatch.setattr("sys.argv", ["check", str(annotation_file.parent)])

    assert main() == status
