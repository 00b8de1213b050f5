"""A validation split is made by the bytes of the images, and a run is bound to it."""

import argparse
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from model.configs import tiny
from model.data.data_set import DataSet, open_data_set
from model.data.loading import open_data
from model.evaluate import add_arguments
from model.evaluation.report import warn_of_training_images
from model.train import main
from tests.model.data.formats import exports

FRACTION = 0.4
TOLD = (
    "this model was trained with VAL_FRACTION=0.5: without it, images of training are evaluated "
    "too, and AP is too high"
)
RECORDED = ["b.bmp", "m.bmp", "o.bmp"]  # of a fraction of 0.15


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Twenty images in YOLO's format with classes.txt, which are not divided."""
    names = {f"{letter}.bmp": exports.TRAIN["a.png"] for letter in "abcdefghijklmnopqrst"}
    exports.write(tmp_path / "data" / "classes.txt", "\n".join(exports.CLASSES))
    exports.write_images(tmp_path / "data" / "images", names)
    for name, boxes in names.items():
        text = "".join(exports.yolo_line(*box) + "\n" for box in boxes)
        exports.write(tmp_path / "data" / "labels" / Path(name).with_suffix(".txt"), text)
    return tmp_path / "data"


def names(data_set: DataSet, split: str) -> list[str]:
    return [file.path.name for file in data_set.open(split).files.values()]


def test_every_image_is_in_one_of_the_two_splits_with_its_boxes(whole: Path) -> None:
    data_set = open_data_set(whole, FRACTION)

    train, val = data_set.open("train"), data_set.open("val")

    assert not {*names(data_set, "train")} & {*names(data_set, "val")}
    assert len(train.images) + len(val.images) == 20
    assert len(train.annotations.boxes) == 2 * len(train.images)
    assert len(val.annotations.boxes) == 2 * len(val.images)
    assert 3 <= len(val.images) <= 13


def test_the_division_is_the_same_on_every_machine(whole: Path) -> None:
    assert names(open_data_set(whole, 0.15), "val") == RECORDED


def test_names_and_other_images_do_not_change_the_side_of_an_image(whole: Path) -> None:
    before = {*names(open_data_set(whole, FRACTION), "val")}

    (whole / "images" / "a.bmp").rename(whole / "images" / "z.bmp")
    (whole / "images" / "b.bmp").unlink()

    after = {*names(open_data_set(whole, FRACTION), "val")}
    renamed = {name.replace("z", "a") for name in after}
    assert renamed == before - {"b.bmp"}


def test_copies_of_an_image_are_on_the_same_side(whole: Path) -> None:
    for path in sorted((whole / "images").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))

    val = {*names(open_data_set(whole, FRACTION), "val")}

    assert {name for name in val if f"copy-{name}" in val} == {n for n in val if "copy" not in n}
    assert len(val) == 2 * sum("copy" not in name for name in val)


def test_val_is_taken_from_train_where_only_train_is_stored(tmp_path: Path) -> None:
    exports.coco(tmp_path)
    (tmp_path / "annotations" / "instances_val.json").unlink()

    data_set = open_data_set(tmp_path, FRACTION)

    assert sorted(names(data_set, "train") + names(data_set, "val")) == sorted(exports.TRAIN)


def test_a_fraction_that_leaves_a_side_empty_is_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"VAL_FRACTION=0\.0001 puts 0 of 20 images into val"):
        open_data_set(whole, 0.0001).open("train")


def test_an_image_that_cannot_be_read_is_a_fault_of_train_alone(whole: Path) -> None:
    (whole / "images" / "a.bmp").write_bytes(b"damaged")
    data_set = open_data_set(whole, FRACTION)

    assert [fault.kind for fault in data_set.open("train").file_faults] == ["unreadable-image"]
    assert data_set.open("val").file_faults == ()


def test_a_run_is_bound_to_its_fraction_and_labels(whole: Path) -> None:
    config = replace(tiny(), batch_size=1)
    before = open_data(config, whole, val_fraction=FRACTION).summary

    other = open_data(config, whole, val_fraction=FRACTION + 0.2).summary
    (whole / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    changed = open_data(config, whole, val_fraction=FRACTION).summary

    assert before["val_fraction"] == FRACTION
    assert other["val_fraction"] != before["val_fraction"]
    assert changed["train_sha256"] != before["train_sha256"]


def test_labels_that_depend_on_the_size_of_an_image_are_bound_to_it(whole: Path) -> None:
    before = open_data_set(whole).open("all").annotations.sha256

    Image.new("RGB", (32, 32)).save(whole / "images" / "a.bmp")

    assert open_data_set(whole).open("all").annotations.sha256 != before


def test_a_run_divides_its_data_names_it_and_is_bound_to_it(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--config", "tiny", "--data", str(whole), "--out", str(tmp_path / "run")]
    settings = ["--set", "epochs=1 batch_size=20 num_workers=0 num_threads=1"]

    with caplog.at_level(logging.INFO):
        assert main([*words, *settings, "--val-fraction", str(FRACTION)]) == 0
        assert main([*words, *settings, "--val-fraction", "0.6"]) == 1

    num_val = len(names(open_data_set(whole, FRACTION), "val"))
    line = f"data set: YOLO (classes.txt), classes: 3, images: {20 - num_val} + {num_val}"
    assert line in caplog.text
    assert "val_fraction" in caplog.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], [TOLD]),
        (["--val-fraction", "0.5"], []),
        (["--data", "other"], []),
        (["--data", "data/mine/images/.."], [TOLD]),
    ],
)
def test_evaluation_of_all_images_tells_that_training_had_set_some_aside(
    words: list[str], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--data", "data/mine", *words])

    warn_of_training_images({"data": {"dataset": "mine", "val_fraction": 0.5}}, args)

    assert caplog.messages == said


def test_a_folder_has_its_name_where_it_is_given_as_a_dot(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)

    data = open_data(tiny(), Path("."), val_fraction=FRACTION)

    assert data.summary["dataset"] == "data"
