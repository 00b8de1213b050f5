"""Any data set becomes one of COCO's format that is read as the same; whole or not at all."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.data.convert import convert, main
from model.data.data_set import open_data_set
from model.data.split import Split
from tests.model.data.formats import exports


def content(split: Split) -> dict[str, Any]:
    """The ground truth without the names of the files, which are new."""
    truth = split.ground_truth()
    for image in truth["images"]:
        image["file_name"] = Path(image["file_name"]).name
    return truth


@pytest.mark.parametrize("export", exports.DIVIDED)
def test_what_was_converted_is_read_as_the_same(
    export: Callable[[Path], None], tmp_path: Path
) -> None:
    export(tmp_path / "data")

    assert main([str(tmp_path / "data"), "--out", str(tmp_path / "coco")]) == 0

    before, after = open_data_set(tmp_path / "data"), open_data_set(tmp_path / "coco")
    assert after.layout.name == "COCO"
    assert content(after.open("train")) == content(before.open("train"))
    assert content(after.open("val")) == content(before.open("val"))


def test_data_that_is_not_divided_stays_so_unless_told(tmp_path: Path) -> None:
    exports.label_studio(tmp_path / "data")

    main([str(tmp_path / "data"), "--out", str(tmp_path / "whole")])
    main([str(tmp_path / "data"), "--out", str(tmp_path / "parts"), "--val-fraction", "0.5"])

    whole, parts = open_data_set(tmp_path / "whole"), open_data_set(tmp_path / "parts")
    assert len(whole.open("all").images) == len(exports.ALL)
    assert len(parts.open("train").images) + len(parts.open("val").images) == len(exports.ALL)


def test_images_of_the_same_name_in_two_folders_stay_two(tmp_path: Path) -> None:
    exports.write(tmp_path / "data" / "classes.txt", "bolt")
    for folder in ("day", "night"):
        exports.write_images(tmp_path / "data" / folder, {"a.png": []})
        exports.write(tmp_path / "data" / folder / "a.txt", "0 0.5 0.5 0.5 0.5")

    convert(open_data_set(tmp_path / "data"), tmp_path / "coco")

    written = json.loads((tmp_path / "coco" / "instances.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["a.png", "2-a.png"]
    assert len(open_data_set(tmp_path / "coco").open("all").files) == 2


def test_a_name_that_was_made_for_an_image_never_takes_the_file_of_another(tmp_path: Path) -> None:
    names = ["day/a.png", "dusk/3-a.png", "night/a.png"]
    for name in names:
        exports.write_images(tmp_path / "data" / Path(name).parent, {Path(name).name: []})
    content = exports.coco_content({name: [("bolt", (4, 6, 20, 10))] for name in names})
    exports.write(tmp_path / "data" / "instances.json", json.dumps(content))
    before = [(tmp_path / "data" / name).read_bytes() for name in names]

    convert(open_data_set(tmp_path / "data"), tmp_path / "coco")

    written = json.loads((tmp_path / "coco" / "instances.json").read_text())["images"]
    copies = [tmp_path / "coco" / "images" / image["file_name"] for image in written]
    assert [copy.read_bytes() for copy in copies] == before
    assert [(tmp_path / "data" / name).read_bytes() for name in names] == before


def test_images_are_copied_where_links_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    exports.voc(tmp_path / "data")

    convert(open_data_set(tmp_path / "data"), tmp_path / "coco")

    copied = tmp_path / "coco" / "images" / "train" / "a.png"
    assert copied.read_bytes() == (tmp_path / "data" / "JPEGImages" / "a.png").read_bytes()


def test_a_folder_that_holds_something_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exports.voc(tmp_path / "data")
    exports.write(tmp_path / "coco" / "mine.txt", "keep")

    assert main([str(tmp_path / "data"), "--out", str(tmp_path / "coco")]) == 1

    assert "exists; name a new directory with --out" in caplog.text
    assert [path.name for path in (tmp_path / "coco").iterdir()] == ["mine.txt"]


def test_data_with_a_fatal_fault_is_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exports.yolo_of_roboflow(tmp_path / "data")
    exports.write(tmp_path / "data" / "valid" / "labels" / "c.txt", "9 0.5 0.5 0.5 0.5")

    assert main([str(tmp_path / "data"), "--out", str(tmp_path / "coco")]) == 1

    assert "valid/labels/c.txt, line 1: class 9" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_failure_on_the_way_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports.voc(tmp_path / "data")
    data_set = open_data_set(tmp_path / "data")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        convert(data_set, tmp_path / "coco")

    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_data_set_is_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exports.cvat(tmp_path / "data")

    with caplog.at_level(logging.INFO):
        main([str(tmp_path / "data"), "--out", str(tmp_path / "coco")])

    line = "data set: CVAT (annotations.xml), classes: 3, images: 3 + 2"
    assert f"{line}, in {tmp_path / 'coco'}" in caplog.text
