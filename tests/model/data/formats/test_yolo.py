"""YOLO: what its tools write beside the plain case, and what is wrong with a file."""

import math
import re
from pathlib import Path

import pytest
from PIL import Image

from model.data.check import check_validation
from model.data.data_set import DataSet, open_data_set
from model.data.formats.source import Source
from model.data.formats.yolo import YoloData, find
from model.data.formats.yolo_line import box_of, parse_line
from model.data.layouts import find_layout
from model.data.split import Split
from tests.model.data.formats import exports
from tests.model.data.formats.exports import write

YAML = "train: train/images\nval: valid/images\nnames: [bolt, cap nut, washer]\n"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Roboflow's export; the labels of a.png may be overwritten."""
    exports.yolo_of_roboflow(tmp_path)
    write(tmp_path / "data.yaml", YAML)
    return tmp_path


class EmptiedOnceRead(YoloData):
    """A data set whose images are empty files once its labels have been read."""

    def read(self, split: str) -> Source:
        source = super().read(split)
        for image in source.image_files:
            image.write_bytes(b"")
        return source


def read(folder: Path, labels: str) -> Split:
    write(folder / "train" / "labels" / "a.txt", labels)
    return open_data_set(folder).open("train")


def fatal(split: Split) -> list[str]:
    return [fault.message for fault in check_validation(split) if fault.fatal]


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.5 0.5 0.25 0.5", (0.375, 0.25, 0.25, 0.5)),
        ("  0\t0.5 0.5   0.25 0.5 \r", (0.375, 0.25, 0.25, 0.5)),
        ("0.0 5e-1 0.5 0.25 0.5", (0.375, 0.25, 0.25, 0.5)),
        ("0 0.25 0.25 0.75 0.25 0.5 0.75", (0.25, 0.25, 0.5, 0.5)),
        ("0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4", (0.1, 0.2, 0.2, 0.2)),
    ],
)
def test_a_line_is_a_box_or_a_polygon(line: str, box: tuple[float, ...]) -> None:
    label, values = parse_line(line, has_points=False)

    assert label == 0
    assert box_of(values) == pytest.approx(box)


def test_the_keypoints_of_a_pose_are_not_taken_for_a_polygon(labelled: Path) -> None:
    write(labelled / "data.yaml", YAML + "kpt_shape: [2, 2]\n")

    split = read(labelled, "0 0.5 0.5 0.25 0.5 0.1 0.1 0.9 0.9\n")

    assert split.annotations.boxes[0].bbox == (24, 12, 16, 24)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            "0 0.5 0.5 0.1 0.1\n\n3 0.5 0.5 0.1 0.1",
            r"a\.txt, line 3: class 3; the classes of data\.yaml are 0 to 2",
        ),
        ("-1 0.5 0.5 0.1 0.1", r"line 1: expected the index of a class, found -1"),
        ("bolt 0.5 0.5 0.1 0.1", r"line 1: expected numbers, found 'bolt 0\.5"),
        ("0 0.5 nan 0.1 0.1", r"line 1: expected numbers, found '0 0\.5 nan"),
        ("0 0.5 0.5 inf 0.1", r"line 1: expected numbers"),
        ("0 0.5 0.5 0.1", r"expected 4 numbers, .* after the class, found 3:"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"found 5:"),
        ("0 320 240 64 64", r"expected fractions of the image's sides, found '0 320 240"),
        ("\x00\x01\x02", r"expected numbers"),
        ("1e400 0.5 0.5 0.1 0.1", r"expected numbers"),
        ("0 " + "0.5 " * 100_001, r"found 100001: '0 0\.5.{50,60}\.\.\.'$"),
    ],
)
def test_a_damaged_line_is_named_with_file_and_number(
    labelled: Path, labels: str, said: str
) -> None:
    messages = fatal(read(labelled, labels))

    assert len(messages) == 1
    assert re.search(said, messages[0])


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("names: [a, b", "not valid YAML"),
        ("train: x\n", "expected the classes as names"),
        ("names: {a: b}", "names has the index 'a', expected a whole number"),
        ("names: [[a], b]", "expected text as the name of class 0"),
        ("names: bolt", "expected names to be a list"),
        ("names: []", "expected names to be a list"),
        ("nc: 2\nnames: [a, b, c]", "nc is 2, but the number of names is 3"),
        ("names: data/bolts.names", 'found "data/bolts.names"'),
        ("names: {0: a, 1: b, 1: c}", "not valid YAML: 1 is given 2 times"),
        ("names: {0: a, 1: b, 01: c}", "names has one index twice, written as 0, 1, 01"),
        ("names: [a]\ntrain: x\ntrain: y", "not valid YAML: train is given 2 times"),
        ("[" * 1200, "not valid YAML"),
        ("a: &a [x]\nb: &b [*a, *a]\nnames: [*b, *b]", "expected text as the name of class 0"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_damaged_yaml_file_is_refused_in_one_line(tmp_path: Path, yaml: str, said: str) -> None:
    write(tmp_path / "data.yaml", yaml)

    with pytest.raises(ValueError, match=said) as raised:
        find_layout(tmp_path)

    assert str(raised.value).startswith(str(tmp_path / "data.yaml"))
    assert "\n" not in str(raised.value)


def test_a_tag_of_python_is_text_and_runs_nothing(labelled: Path) -> None:
    tagged = "!!python/object/apply:os.system [exit 3]"
    write(labelled / "data.yaml", YAML.replace("[bolt, cap nut, washer]", tagged))

    assert read(labelled, "").annotations.classes[0].name == "exit 3"


def test_names_that_yaml_takes_for_other_things_stay_text(labelled: Path) -> None:
    write(labelled / "data.yaml", YAML.replace("[bolt, cap nut, washer]", "[no, 1, null]"))

    classes = read(labelled, "").annotations.classes

    assert [info.name for info in classes] == ["no", "1", "null"]


def test_classes_that_are_only_counted_get_names(labelled: Path) -> None:
    write(labelled / "data.yaml", YAML.replace("names: [bolt, cap nut, washer]", "nc: 3"))

    classes = read(labelled, "").annotations.classes

    assert [info.name for info in classes] == ["class_0", "class_1", "class_2"]


@pytest.mark.parametrize("yaml", ["", "path: .\nTrain: Train.txt\nValidation: Validation.txt\n"])
def test_lists_may_have_the_names_of_cvats_subsets(tmp_path: Path, yaml: str) -> None:
    exports.yolo_of_darknet(tmp_path)
    (tmp_path / "train.txt").rename(tmp_path / "Train.txt")
    (tmp_path / "val.txt").rename(tmp_path / "Validation.txt")
    if yaml:
        write(tmp_path / "data.yaml", f"{yaml}names: [bolt, cap nut, washer]\n")

    data_set = open_data_set(tmp_path)

    assert [len(data_set.open(split).images) for split in ("train", "val")] == [3, 2]


@pytest.mark.parametrize(
    ("names", "is_told"),
    [("bolt\ncap nut\nwasher\n", False), ("washer\nbolt\ncap nut\n", True), ("", False)],
)
def test_a_list_of_classes_that_contradicts_the_yaml_file_is_told(
    labelled: Path, names: str, is_told: bool
) -> None:
    write(labelled / "classes.txt", names)

    faults = open_data_set(labelled).open("train").annotations.faults

    told = [fault.message for fault in faults if fault.kind == "other-class-list"]
    assert len(told) == is_told
    assert all('lists the classes ["washer", "bolt", "cap nut"], and' in one for one in told)


def test_names_come_before_the_description_of_a_model(labelled: Path) -> None:
    (labelled / "data.yaml").rename(labelled / "z.yaml")
    write(labelled / "model.yaml", "nc: 80\ndepth_multiple: 0.33\n")

    assert find_layout(labelled).name == "YOLO (z.yaml)"


def test_indices_with_gaps_are_the_ids_of_the_classes(labelled: Path) -> None:
    write(labelled / "data.yaml", YAML.replace("[bolt, cap nut, washer]", "{7: g, 2: b, 0: a}"))

    split = read(labelled, "7 0.5 0.5 0.25 0.5")

    assert [(info.id, info.name) for info in split.annotations.classes] == [
        (0, "a"),
        (2, "b"),
        (7, "g"),
    ]
    assert split.annotations.boxes[0].category_id == 7


def test_a_split_whose_folder_is_not_there_is_named(labelled: Path) -> None:
    write(labelled / "data.yaml", YAML.replace("valid/images", "/content/gone/images"))

    said = r"looked for val in data\.yaml, which is /content/gone/images, and there is no such"
    with pytest.raises(ValueError, match=said):
        open_data_set(labelled).open("val")


def test_a_split_of_which_a_part_is_missing_is_refused(labelled: Path) -> None:
    write(labelled / "data.yaml", YAML.replace("valid/images", "[valid/images, more/images]"))

    with pytest.raises(
        ValueError, match=r"data\.yaml: val names more/images, which does not exist"
    ):
        open_data_set(labelled).open("val")


def test_fractions_are_of_the_image_as_displayed_which_is_said(labelled: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (64, 48)).save(labelled / "train" / "images" / "a.png", exif=exif)

    split = read(labelled, "0 0.5 0.5 0.5 0.5")

    assert split.annotations.boxes[0].bbox == (12, 16, 24, 32)
    messages = [fault.message for fault in check_validation(split)]
    assert any("images turned by their EXIF orientation: 1, such as" in m for m in messages)


def test_labels_without_an_image_and_images_without_labels_are_reported(labelled: Path) -> None:
    write(labelled / "train" / "labels" / "gone.txt", "0 0.5 0.5 0.5 0.5")
    (labelled / "train" / "labels" / "b.txt").unlink()

    messages = [fault.message for fault in check_validation(read(labelled, ""))]

    assert "images without a label file, taken as images without objects: 1 of 3" in messages
    assert "left out: label files without an image (1)" in messages


def test_an_unreadable_image_is_reported_once(labelled: Path) -> None:
    write(labelled / "train" / "images" / "a.png", "no image")

    faults = check_validation(read(labelled, "0 0.5 0.5 0.5 0.5"))

    assert [fault.kind for fault in faults if fault.fatal] == ["unreadable-image"]


def test_an_image_is_read_once_for_its_boxes_and_for_its_check(labelled: Path) -> None:
    layout = find(labelled)
    assert layout is not None

    split = DataSet(EmptiedOnceRead(**vars(layout))).open("train")

    assert split.file_faults == ()
    assert len(split.files) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_of_windows_is_read(labelled: Path, encoding: str) -> None:
    (labelled / "data.yaml").unlink()
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    names, labels = "b\xf6lt\r\ncap nut\r\nw\xe4sher\r\n", "2 0.5 0.5 0.25 0.5\r\n"
    (labelled / "classes.txt").write_bytes((mark + names).encode(encoding))
    (labelled / "train" / "labels" / "a.txt").write_bytes((mark + labels).encode(encoding))

    found = open_data_set(labelled).open("train").annotations

    assert [info.name for info in found.classes] == ["b\xf6lt", "cap nut", "w\xe4sher"]
    assert [box.bbox for box in found.boxes if box.image_id == 1] == [(24, 12, 16, 24)]


def test_names_in_an_encoding_that_cannot_be_told_are_refused(labelled: Path) -> None:
    (labelled / "data.yaml").unlink()
    (labelled / "classes.txt").write_bytes("b\xf6lt\n".encode("latin-1"))

    with pytest.raises(ValueError, match=r"classes\.txt: not text in UTF-8 .*: save it as UTF-8"):
        find_layout(labelled)


def test_a_label_file_that_is_not_text_is_named(labelled: Path) -> None:
    (labelled / "train" / "labels" / "a.txt").write_bytes(b"\x89PNG\xff")

    messages = fatal(open_data_set(labelled).open("train"))

    assert len(messages) == 1
    assert "a.txt: not text in UTF-8" in messages[0]


def pose(*keypoints: str) -> str:
    """Lines of boxes in a row, each with these keypoints (x, y, ...) in parts of the box."""
    lines = []
    for cx in (0.2, 0.4, 0.6, 0.8):
        numbers = [cx, 0.5, 0.1, 0.2]
        for x, y, *visible in (map(float, one.split()) for one in keypoints):
            numbers += [cx + 0.1 * (x - 0.5), 0.5 + 0.2 * (y - 0.5), *visible]
        lines.append("0 " + " ".join(f"{number:.6f}" for number in numbers))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        (pose("0.1 0.2"), "[1, 2]"),
        (pose("0.1 0.2", "0.9 1", "0.5 0.5"), "[3, 2]"),
        (pose("0.1 0.2 1", "0.9 1 0"), "[2, 3]"),
    ],
)
def test_a_pose_is_not_read_as_a_polygon(labelled: Path, labels: str, shape: str) -> None:
    write(labelled / "valid" / "labels" / "c.txt", labels)

    [message] = fatal(open_data_set(labelled).open("val"))

    assert f"write kpt_shape: {shape} into data.yaml" in message


@pytest.mark.parametrize("num_points", [3, 4, 5, 6, 32])
def test_polygons_of_as_many_points_are_no_poses(labelled: Path, num_points: int) -> None:
    angles = [2 * math.pi * number / num_points for number in range(num_points)]
    lines = [
        " ".join([
            "0", *(f"{x + 0.04 * math.cos(a):.6f} {y + 0.04 * math.sin(a):.6f}" for a in angles)
        ])
        for x in (0.1, 0.5, 0.9) for y in (0.1, 0.5, 0.9)
    ]  # fmt: skip

    assert fatal(read(labelled, "\n".join(lines))) == []


@pytest.mark.parametrize("text", ["\nbolt\nwasher\n", "bolt\n  \nwasher"])
def test_an_empty_line_among_the_classes_is_refused(tmp_path: Path, text: str) -> None:
    exports.label_studio_yolo(tmp_path)
    write(tmp_path / "classes.txt", text)

    with pytest.raises(ValueError, match=r"classes\.txt: line [12] is empty"):
        find_layout(tmp_path)


def test_empty_lines_after_the_classes_are_ignored(tmp_path: Path) -> None:
    exports.label_studio_yolo(tmp_path)
    write(tmp_path / "classes.txt", "bolt\ncap nut \nwasher\n\n")

    classes = open_data_set(tmp_path).open("all").annotations.classes

    assert [info.name for info in classes] == exports.CLASSES


def test_a_truncated_image_has_one_fault_and_no_note_about_its_size(labelled: Path) -> None:
    image = labelled / "train" / "images" / "a.png"
    image.write_bytes(image.read_bytes()[:20])

    faults = check_validation(open_data_set(labelled).open("train"))

    about = [fault.kind for fault in faults if "a.png" in fault.message]
    assert about == ["unreadable-image"]
    assert not any("state no size" in fault.message for fault in faults)
