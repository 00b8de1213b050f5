"""Files that are elsewhere, or called otherwise, than the tools leave them."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from model.data.check import check_validation
from model.data.data_set import open_data_set
from tests.model.data.formats import exports
from tests.model.data.formats.exports import write


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    exports.voc(tmp_path)
    return tmp_path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    exports.yolo_of_roboflow(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", [".XML", ".Xml"])
def test_suffixes_of_other_systems_are_read(voc: Path, suffix: str) -> None:
    for file in (voc / "Annotations").glob("*.xml"):
        file.rename(file.with_suffix(suffix))

    assert open_data_set(voc).open("train").annotations.boxes


@pytest.mark.parametrize("folder", ["JPEGImages", "Annotations"])
def test_folders_may_be_links(
    voc: Path, tmp_path_factory: pytest.TempPathFactory, folder: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("disk") / folder
    shutil.move(voc / folder, elsewhere)
    (voc / folder).symlink_to(elsewhere)

    split = open_data_set(voc).open("train")

    assert len(split.images) == 3
    assert len(split.annotations.boxes) == 3


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.PNG", "a.TXT"),
        (f"{unicodedata.normalize('NFC', 'é')}.png", f"{unicodedata.normalize('NFD', 'é')}.txt"),
        (f"{unicodedata.normalize('NFD', 'é')}.png", f"{unicodedata.normalize('NFC', 'é')}.txt"),
    ],
)
def test_a_label_file_is_found_as_other_systems_spell_its_name(
    labelled: Path, image: str, label: str
) -> None:
    folder = labelled / "train"
    (folder / "images" / "a.png").rename(folder / "images" / image)
    (folder / "labels" / "a.txt").rename(folder / "labels" / label)

    split = open_data_set(labelled).open("train")

    assert len(split.annotations.boxes) == 3


def test_images_in_a_folder_behind_a_link_count_and_hidden_ones_do_not(
    labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    images, disk = labelled / "train" / "images", tmp_path_factory.mktemp("disk")
    shutil.copy(images / "a.png", disk / "e.png")
    write(disk / "e.txt", "0 0.5 0.5 0.5 0.5")
    (images / "more").symlink_to(disk)
    shutil.copytree(disk, images / ".ipynb_checkpoints")

    split = open_data_set(labelled).open("train")

    assert len(split.images) == 4
    assert len(split.annotations.boxes) == 4


def test_a_link_to_an_image_that_is_gone_is_a_fault(labelled: Path) -> None:
    (labelled / "train" / "images" / "e.png").symlink_to("gone.png")

    [message] = [
        fault.message
        for fault in check_validation(open_data_set(labelled).open("train"))
        if fault.fatal
    ]

    assert message.startswith(f"there is no file {labelled}/train/images/e.png")
