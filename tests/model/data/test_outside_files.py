"""A data set is read inside of its folder, and what is no file is not waited for."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from model.data.check import check_validation, main
from model.data.data_set import open_data_set
from tests.model.data.formats import exports
from tests.model.data.formats.exports import write, write_images

Export = Callable[[Path], None]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a data set, beside another one that has an image and its labels."""
    write_images(tmp_path / "other" / "images", {"x.png": []})
    write(tmp_path / "other" / "labels" / "x.txt", "the secret of another")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def rename(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def coco(data: Path, name: str) -> None:
    exports.coco(data)
    rename(data / "annotations" / "instances_train.json", '"a.png"', json.dumps(name))


def voc(data: Path, name: str) -> None:
    exports.voc_of_roboflow(data)
    rename(data / "train" / "a.xml", "<filename>a.png<", f"<filename>{name}<")
    (data / "train" / "a.xml").rename(data / "train" / "gone.xml")
    (data / "train" / "a.png").unlink()


def darknet(data: Path, name: str) -> None:
    exports.yolo_of_darknet(data)
    lines = (data / "train.txt").read_text().splitlines()
    (data / "train.txt").write_text("\n".join([name, *lines[1:]]))


def listed(data: Path, name: str) -> None:
    exports.yolo_of_ultralytics(data)
    (data / "mine.txt").write_text(name)
    (data / "data.yaml").unlink(missing_ok=True)
    write(data / "data.yaml", "train: mine.txt\nval: images/val\nnames: [bolt, cap nut, washer]\n")


@pytest.mark.parametrize("make", [coco, voc, darknet, listed])
@pytest.mark.parametrize("is_absolute", [False, True])
def test_an_image_outside_is_named_and_not_read(
    data: Path, make: Callable[[Path, str], None], is_absolute: bool
) -> None:
    outside = data.parent / "other" / "images" / "x.png"
    in_image_dir = "../.." if make is coco else ".."
    make(data, str(outside) if is_absolute else f"{in_image_dir}/other/images/x.png")

    split = open_data_set(data).open("train")

    fatal = [fault for fault in check_validation(split) if fault.fatal]
    assert [fault.kind for fault in fatal] == ["outside-file"]
    assert f"outside of the data set's folder {data} and was not read" in fatal[0].message
    assert fatal[0].image_id not in split.files
    assert "secret" not in str(check_validation(split))


@pytest.mark.parametrize("make", [coco, darknet, listed])
def test_absolute_names_of_what_is_inside_are_read(
    data: Path, make: Callable[[Path, str], None]
) -> None:
    write_images(data / "images" / "more", {"inside.png": []})
    make(data, str(data / "images" / "more" / "inside.png"))

    split = open_data_set(data).open("train")

    assert "inside.png" in {file.path.name for file in split.files.values()}
    assert "outside-file" not in {fault.kind for fault in check_validation(split)}


def test_the_folder_may_be_a_link_and_so_may_what_is_in_it(data: Path) -> None:
    coco(data, str(data / "train" / "linked.png"))
    (data / "train" / "linked.png").symlink_to(data.parent / "other" / "images" / "x.png")
    (data.parent / "link").symlink_to(data)

    split = open_data_set(data.parent / "link").open("train")

    assert [fault for fault in check_validation(split) if fault.fatal] == []


def test_a_folder_outside_that_a_yaml_file_names_is_refused(data: Path) -> None:
    exports.yolo_of_ultralytics(data)
    write_images(data.parent / "photos", {"x.png": []})
    write(data / "data.yaml", "train: ../photos\nval: images/val\nnames: [bolt]\n")

    with pytest.raises(ValueError, match=r"photos is outside of .*, or name a symbolic link"):
        open_data_set(data).open("train")


def test_a_folder_inside_comes_before_one_outside_of_the_same_name(data: Path) -> None:
    """Roboflow writes ../train/images for train/images."""
    exports.yolo_of_roboflow(data)
    write_images(data.parent / "train" / "images", {"x.png": []})

    split = open_data_set(data).open("train")

    assert {file.path.name for file in split.files.values()} == {"a.png", "b.png", "empty.png"}


@pytest.mark.parametrize(
    ("export", "pipe"),
    [
        (exports.labelme, "train/pipe.json"),
        (exports.voc, "Annotations/pipe.xml"),
        (exports.yolo_of_darknet, "train.txt"),
        (exports.label_studio, "pipe.json"),
    ],
)
def test_a_pipe_in_a_data_set_is_named_and_not_waited_for(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    export: Export,
    pipe: str,
) -> None:
    export(data)
    (data / pipe).parent.mkdir(exist_ok=True)
    (data / pipe).unlink(missing_ok=True)
    os.mkfifo(data / pipe)
    monkeypatch.setattr("sys.argv", ["check", str(data)])

    assert main() == 1
    assert f"it is a named pipe, not a file: '{data / pipe}'" in capsys.readouterr().err


def test_a_pipe_in_place_of_an_image_is_a_missing_file(data: Path) -> None:
    exports.coco(data)
    (data / "train" / "a.png").unlink()
    os.mkfifo(data / "train" / "a.png")

    split = open_data_set(data).open("train")

    assert "missing-file" in {fault.kind for fault in check_validation(split)}
