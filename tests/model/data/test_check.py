"""The check of a data set names every fault and changes nothing."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.config import ModelConfig
from model.data.check import check_split, check_validation, main
from model.data.data_set import open_data_set
from model.data.faults import Fault, describe
from tests.model.data.reading import read_split

SMALL_MODEL = ModelConfig(num_queries=6, num_detections=5)


def check(annotation_file: Path, image_dir: Path) -> list[Fault]:
    return check_split(read_split(annotation_file, image_dir), SMALL_MODEL)


@pytest.fixture
def sound(tmp_path):
    """A sound data set of two images, as (content, write): change the one, then call the other."""
    (tmp_path / "images").mkdir()
    for name, colour in (("a.png", "black"), ("b.png", "grey")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / "images" / name)
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 40, "width": 60},
            {"id": 2, "file_name": "b.png", "height": 40, "width": 60},
        ],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 5, "bbox": [1, 2, 30, 20]},
            {"id": 12, "image_id": 1, "category_id": 6, "bbox": [0, 0, 60.04, 40]},
            {"id": 13, "image_id": 2, "category_id": 5, "bbox": [3, 3, 20, 20]},
            {"id": 14, "image_id": 2, "category_id": 6, "bbox": [3, 3, 20, 21]},
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
    }

    def write() -> tuple[Path, Path]:
        (tmp_path / "train.json").write_text(json.dumps(content))
        return tmp_path / "train.json", tmp_path / "images"

    return content, write


def test_a_sound_data_set_has_no_fault(sound):
    _, write = sound

    faults = check(*write())

    assert faults == []
    assert describe(faults, limit=3) == "no faults"


def test_real_annotations_have_no_fault():
    faults = check_split(
        open_data_set(Path("tests/data/coco_fixture12")).open("train"), SMALL_MODEL
    )

    assert {fault.kind for fault in faults} == {"crowds", "empty-classes", "many-objects"}


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

    (fault,) = check(*write())

    assert (fault.kind, fault.image_id, fault.annotation_id) == (kind, 1, 12)
    assert not fault.fatal
    assert str(bbox) in fault.message
    assert fault.message.endswith(("not trained on", "clipped to it"))


@pytest.mark.parametrize(
    ("bbox", "is_evaluated"),
    [([1, 2, 0, 5], False), ([1, 2, 5, -5], False), ([60, 2, 5, 5], False), ([1, -9, 5, 9], False),
     ([1, 2, 5, 0.5], True), ([-3, 2, 9, 9], True)],
)  # fmt: skip
def test_a_box_that_no_detection_could_match_is_not_evaluated(sound, bbox, is_evaluated):
    content, write = sound
    content["annotations"][1]["bbox"] = bbox

    truth = read_split(*write()).ground_truth()

    assert (12 in [entry["id"] for entry in truth["annotations"]]) is is_evaluated


@pytest.mark.parametrize(
    ("section", "position", "change", "kind"),
    [
        ("annotations", 1, {"bbox": [1, 2, 3]}, "malformed"),
        ("annotations", 1, {"bbox": [1, 2, 3, math.nan]}, "malformed"),
        ("annotations", 1, {"bbox": [1, 2, 3, math.inf]}, "malformed"),
        ("annotations", 1, {"bbox": None}, "malformed"),
        ("annotations", 1, {"bbox": "[1, 2, 3, 4]"}, "malformed"),
        ("annotations", 1, {"bbox": [1, 2, 3, "four"]}, "malformed"),
        ("annotations", 1, {"iscrowd": "perhaps"}, "malformed"),
        ("annotations", 1, {"iscrowd": 2}, "malformed"),
        ("annotations", 1, {"image_id": None}, "malformed"),
        ("annotations", 1, {"category_id": 7}, "unknown-category"),
        ("annotations", 1, {"image_id": 3}, "unknown-image"),
        ("annotations", 1, {"id": 11}, "duplicate-annotation-id"),
        ("images", 1, {"file_name": "a.png"}, "duplicate-file"),
        ("images", 1, {"file_name": "c.png"}, "missing-file"),
        ("images", 1, {"file_name": "."}, "missing-file"),
        ("images", 1, {"height": 60, "width": 40}, "other-size"),
        ("categories", 1, {"name": "cat"}, "duplicate-category-name"),
        ("categories", 1, {"name": None}, "malformed"),
    ],
)
def test_what_would_make_training_wrong_is_fatal(sound, section, position, change, kind):
    content, write = sound
    content[section][position].update(change)

    faults = check(*write())

    assert [fault.kind for fault in faults] == [kind]
    assert faults[0].fatal


@pytest.mark.parametrize("name", ["Cat", " cat", "c a t"])
def test_classes_of_nearly_the_same_name_are_reported(sound, name):
    content, write = sound
    content["categories"][1]["name"] = name

    (fault,) = check(*write())

    assert (fault.kind, fault.fatal) == ("similar-category-names", False)
    assert f"only in case or spaces: 'cat', {name!r}" in fault.message


def test_equal_images_are_counted(sound, tmp_path):
    _, write = sound
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "b.png")

    (fault,) = check(*write())

    assert not fault.fatal
    assert "images with the content of another: 1, such as " in fault.message
    assert "b.png, which is " in fault.message


def test_a_duplicate_image_id_is_fatal(sound):
    content, write = sound
    content["annotations"] = content["annotations"][:2]
    content["images"][1]["id"] = 1

    kinds = {fault.kind for fault in check(*write()) if fault.fatal}

    assert kinds == {"duplicate-image-id"}


def test_a_duplicate_category_id_is_fatal(sound):
    content, write = sound
    content["categories"].append({"id": 5, "name": "cow"})

    assert [fault.kind for fault in check(*write())] == ["duplicate-category-id"]


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_an_empty_list_is_fatal(sound, section):
    content, write = sound
    content[section].clear()

    fault = next(f for f in check(*write()) if f.kind == f"no-{section}")

    assert fault.fatal


def test_a_data_set_with_nothing_to_train_on_is_fatal(sound):
    content, write = sound
    content["annotations"] = content["annotations"][:2]
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [1, 1, 0, 0]

    faults = check(*write())

    assert {fault.kind for fault in faults if fault.fatal} == {"no-targets"}


def test_an_image_is_measured_as_displayed(sound):
    _, write = sound
    annotation_file, image_dir = write()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (60, 40)).save(image_dir / "a.png", exif=exif)

    (fault,) = check(annotation_file, image_dir)

    assert (fault.kind, fault.image_id) == ("other-size", 1)
    assert "40 x 60 pixels as displayed" in fault.message
    assert "EXIF orientation 6" in fault.message


def test_an_image_of_another_size_is_no_matter_of_exif(sound):
    content, write = sound
    content["images"][0].update(height=80, width=120)

    (fault,) = check(*write())

    assert (fault.kind, fault.image_id, fault.fatal) == ("other-size", 1, True)
    assert "60 x 40 pixels, the annotations say 120 x 80" in fault.message
    assert "EXIF" not in fault.message


@pytest.mark.parametrize("damage", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_an_unreadable_image_is_fatal(sound, damage):
    _, write = sound
    annotation_file, image_dir = write()
    (image_dir / "b.png").write_bytes(damage)

    (fault,) = check(annotation_file, image_dir)

    assert (fault.kind, fault.image_id, fault.fatal) == ("unreadable-image", 2, True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_an_image_that_is_cut_short_is_found_by_its_header_alone(sound, kind):
    _, write = sound
    annotation_file, image_dir = write()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(image_dir / "b.png", kind)
    whole = (image_dir / "b.png").read_bytes()
    assert check(annotation_file, image_dir) == []

    (image_dir / "b.png").write_bytes(whole[: len(whole) * 3 // 4])
    (fault,) = check(annotation_file, image_dir)

    assert (fault.kind, fault.image_id, fault.fatal) == ("unreadable-image", 2, True)


def test_damage_amid_the_pixels_is_found_by_decoding(sound):
    _, write = sound
    files = write()
    content = bytearray((files[1] / "b.png").read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF
    (files[1] / "b.png").write_bytes(content)

    split = read_split(*files, decode=True)

    assert [fault.kind for fault in split.file_faults] == ["unreadable-image"]
    assert read_split(*files).file_faults == ()


def test_a_tiny_image_is_reported(sound):
    content, write = sound
    content["images"][1].update(height=31, width=33)
    annotation_file, image_dir = write()
    Image.new("RGB", (33, 31)).save(image_dir / "b.png")

    (fault,) = check(annotation_file, image_dir)

    assert (fault.kind, fault.image_id, fault.fatal) == ("tiny-image", 2, False)


def test_boxes_of_tiny_images_alone_are_no_targets_but_can_be_evaluated_on(sound):
    content, write = sound
    del content["annotations"][:2]
    content["images"][1].update(height=31, width=33)
    annotation_file, image_dir = write()
    Image.new("RGB", (33, 31)).save(image_dir / "b.png")
    split = read_split(annotation_file, image_dir)

    trained, evaluated = check_split(split, SMALL_MODEL), check_validation(split)

    assert [f.kind for f in trained if f.fatal] == ["no-targets"]
    assert {f.kind for f in evaluated} == {"tiny-image"}


def test_every_fault_is_found_in_one_pass(sound):
    content, write = sound
    content["images"][1]["file_name"] = "c.png"
    content["annotations"][0]["category_id"] = 9
    content["annotations"][1]["bbox"] = [-5, 0, 10, 10]

    kinds = [fault.kind for fault in check(*write())]

    assert kinds == ["unknown-category", "missing-file", "box-partly-outside", "empty-classes"]


def test_a_report_is_shortened_by_kind_but_names_and_counts_all():
    faults = [Fault("thin-box", 1, i, "thin", fatal=False) for i in range(11, 18)]
    faults += [Fault("missing-file", i, None, "no such file") for i in (3, 4, 5)]

    report = describe(faults, limit=2)

    assert report.splitlines() == [
        "thin-box: image 1: annotation 11: thin",
        "thin-box: image 1: annotation 12: thin",
        "thin-box: and 5 more: annotations 13, 14, 15, 16, 17",
        "FATAL missing-file: image 3: no such file",
        "FATAL missing-file: image 4: no such file",
        "missing-file: and 1 more: images 5",
        "10 faults, 3 fatal: 7 thin-box, 3 missing-file",
    ]


@pytest.mark.parametrize(
    ("fatal", "last_line"),
    [([], "no faults"), ([True], "1 fault, 1 fatal: 1 thin-box"),
     ([False], "1 fault, none fatal: 1 thin-box"),
     ([False, False], "2 faults, none fatal: 2 thin-box")],
)  # fmt: skip
def test_the_last_line_of_a_report_counts_in_words_that_agree(fatal, last_line):
    faults = [Fault("thin-box", 1, number, "thin", fatal=is_fatal)
              for number, is_fatal in enumerate(fatal)]  # fmt: skip

    assert describe(faults, limit=2).splitlines()[-1] == last_line


@pytest.mark.parametrize(("file_name", "status"), [("b.png", 0), ("c.png", 1)])
def test_the_command_exits_with_1_only_for_fatal_faults(sound, monkeypatch, file_name, status):
    content, write = sound
    content["images"][1]["file_name"] = file_name
    content["annotations"][1]["bbox"] = [-5, 0, 10, 10]
    annotation_file, _ = write()
    monkeypatch.setattr("sys.argv", ["check", str(annotation_file.parent), "--split", "train"])

    assert main() == status


def test_the_command_checks_training_and_validation_beside_each_other(sound, monkeypatch, capsys):
    content, write = sound
    annotation_file, _ = write()
    content["annotations"] = []
    (annotation_file.parent / "val.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["check", str(annotation_file.parent)])

    status = main()

    output = capsys.readouterr().out
    assert status == 0
    assert "no-validation-boxes: no box to evaluate on" in output
    assert "validation images that are training images too: 2 of 2, such as" in output
    assert "apart from equal files, no validation image looks like a training image" in output


def test_the_command_refuses_validation_of_another_list_of_classes(sound, monkeypatch, capsys):
    content, write = sound
    annotation_file, _ = write()
    content["categories"][1]["name"] = "wolf"
    (annotation_file.parent / "val.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["check", str(annotation_file.parent)])

    status = main()

    assert status == 1
    assert "FATAL other-classes: 6 wolf of val are not classes of train" in capsys.readouterr().out


def test_a_file_name_from_an_annotation_file_does_not_control_the_terminal(
    sound, monkeypatch, capsys
):
    content, write = sound
    content["images"][0]["file_name"] = "\x1b[2Ja.png"
    annotation_file, _ = write()
    monkeypatch.setattr("sys.argv", ["check", str(annotation_file.parent), "--split", "train"])

    main()

    shown = capsys.readouterr().out
    assert r"\x1b[2Ja.png" in shown
    assert "\x1b" not in shown
