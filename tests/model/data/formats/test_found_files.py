"""Files that are elsewhere, or called otherwise, than the tools leave them."""

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

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


def fatal(folder: Path) -> list[str]:
    faults = check_validation(open_data_set(folder).open("train"))
    return [fault.message for fault in faults if fault.fatal]


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


@pytest.mark.parametrize("place", ["images/sub/a.png", "images/images/a.png"])
def test_a_label_file_where_yolo_does_not_look_is_refused(labelled: Path, place: str) -> None:
    (labelled / "train" / place).parent.mkdir()
    (labelled / "train" / "images" / "a.png").rename(labelled / "train" / place)

    [message] = fatal(labelled)

    assert message.startswith(f"train/{place} has no label file train/")
    assert "but there is train/labels/a.txt: move" in message


def test_a_label_file_in_a_folder_of_another_kind_is_told(labelled: Path) -> None:
    """Somebody may have kept labels of an earlier time beside those that count."""
    (labelled / "train" / "labels" / "empty.txt").unlink()
    write(labelled / "labels_old" / "empty.txt", "0 0.5 0.5 0.5 0.5")

    faults = check_validation(open_data_set(labelled).open("train"))

    [message] = [fault.message for fault in faults if fault.kind == "misplaced-labels"]
    assert fatal(labelled) == []
    assert "there is labels_old/empty.txt: it is not read" in message


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("captions/empty.txt", "a photograph of nothing"),
        ("train/labels/notes.txt", "0 0.5 0.5 0.5 0.5"),
        ("valid/labels/empty.txt", "0 0.5 0.5 0.5 0.5"),
        ("more/empty.txt", ""),
    ],
)
def test_other_text_files_are_no_misplaced_labels(labelled: Path, file: str, text: str) -> None:
    (labelled / "train" / "labels" / "empty.txt").unlink()
    write(labelled / file, text)
    shutil.copy(
        labelled / "valid" / "images" / "c.png", labelled / "valid" / "images" / "empty.png"
    )

    assert fatal(labelled) == []


def test_images_that_share_a_label_file_are_told(labelled: Path) -> None:
    Image.new("RGB", (64, 48)).save(labelled / "train" / "images" / "a.bmp")

    faults = check_validation(open_data_set(labelled).open("train"))

    [fault] = [fault for fault in faults if fault.kind == "shared-label-file"]
    assert "1, such as train/images/a.png with that of train/images/a.bmp" in fault.message


@pytest.mark.parametrize("name", ["a.HEIC", "e.gif"])
def test_images_of_other_formats_are_counted(labelled: Path, name: str) -> None:
    write(labelled / "train" / "images" / name, "?")

    faults = check_validation(open_data_set(labelled).open("train"))

    [fault] = [fault for fault in faults if fault.kind == "other-formats"]
    assert f"not read: 1, such as train/images/{name}; convert" in fault.message


def test_jpegs_of_windows_are_read(labelled: Path) -> None:
    Image.new("RGB", (64, 48)).save(labelled / "train" / "images" / "e.jfif", "JPEG")

    assert len(open_data_set(labelled).open("train").images) == 4


def test_an_image_that_only_labelmes_file_holds_is_told(tmp_path: Path) -> None:
    exports.labelme(tmp_path)
    (tmp_path / "train" / "images" / "a.png").unlink()

    message, missing = fatal(tmp_path)

    assert message.startswith("train/json/a.json holds its image itself, as imageData: write it")
    assert missing.startswith("there is no file")


def write_cvat(folder: Path) -> None:
    """Without subsets, so that nothing says in which folder an image is."""
    exports.cvat(folder)
    file = folder / "annotations.xml"
    text = file.read_text().replace(' subset="Train"', "").replace(' subset="Validation"', "")
    file.write_text(text)


@pytest.mark.parametrize("writer", [exports.voc, write_cvat, exports.labelme, exports.label_studio])
@pytest.mark.parametrize("is_equal", [False, True])
def test_a_name_of_several_images_that_differ_is_refused(
    tmp_path: Path, writer: Callable[[Path], None], is_equal: bool
) -> None:
    writer(tmp_path)
    image = next(tmp_path.rglob("a.png"))
    for folder in ("x", "y"):
        (image.parent / folder).mkdir()
        shutil.copy(image, image.parent / folder)
    image.unlink()
    if not is_equal:
        Image.new("RGB", (64, 48), "red").save(image.parent / "y" / "a.png")

    faults = open_data_set(tmp_path).open("train").annotations.faults

    found = [fault.message for fault in faults if fault.kind == "several-images"]
    assert len(found) == (0 if is_equal else 1)
    assert all("x/a.png, " in message and "y/a.png" in message for message in found)


def test_of_images_of_one_name_that_in_the_folder_of_voc_counts(voc: Path) -> None:
    (voc / "Backup").mkdir()
    Image.new("RGB", (64, 48), "red").save(voc / "Backup" / "a.png")

    split = open_data_set(voc).open("train")

    assert split.annotations.images[0].file_name == "JPEGImages/a.png"
    assert fatal(voc) == []


def test_masks_of_voc_are_not_taken_for_its_images(voc: Path) -> None:
    for file in (voc / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace(".png</filename>", "</filename>"))
    (voc / "SegmentationClass").mkdir()
    Image.new("P", (64, 48)).save(voc / "SegmentationClass" / "a.png")

    split = open_data_set(voc).open("train")

    assert split.annotations.images[0].file_name == "JPEGImages/a.png"
    assert fatal(voc) == []
