"""Pascal VOC: what its tools write beside the plain case, and what is wrong with a file."""

import math
import re
from pathlib import Path

import pytest

from model.data.check import check_validation
from model.data.data_set import open_data_set
from model.data.split import Split
from tests.model.data.formats import exports
from tests.model.data.formats.exports import write

BOX = "<bndbox><xmin>5</xmin><ymin>7</ymin><xmax>24</xmax><ymax>16</ymax></bndbox>"
SIZE = "<size><width>64</width><height>48</height></size>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    exports.voc(tmp_path)
    return tmp_path


def read(folder: Path, content: str) -> Split:
    """The split train with this as the content of a.xml."""
    write(folder / "Annotations" / "a.xml", f"<annotation>{content}</annotation>")
    return open_data_set(folder).open("train")


def boxes(split: Split) -> list[tuple[float, ...]]:
    return [box.bbox for box in split.annotations.boxes if box.image_id == 1]


def test_parts_of_an_object_are_not_objects(voc: Path) -> None:
    part = (
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax></bndbox></part>"
    )

    split = read(voc, f"<filename>a.png</filename><object><name>bolt</name>{part}{BOX}</object>")

    assert boxes(split) == [(4, 6, 20, 10)]
    assert [info.name for info in split.annotations.classes] == ["bolt", "cap nut", "washer"]


def test_a_difficult_object_is_a_crowd(voc: Path) -> None:
    split = read(voc, f"<object><name>bolt</name><difficult>1</difficult>{BOX}</object>")

    assert [box.is_crowd for box in split.annotations.boxes] == [True, False]


@pytest.mark.parametrize(
    "names",
    [
        "",
        "<filename>a</filename>",
        "<filename>C:\\data\\a.png</filename>",
        "<filename>gone.jpg</filename><path>/data/a.png</path>",
    ],
)
def test_the_image_is_found_by_any_name_that_fits(voc: Path, names: str) -> None:
    split = read(voc, f"{names}<object><name>bolt</name>{BOX}</object>")

    assert split.files[1].path == voc / "JPEGImages" / "a.png"


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("{}", "{}"), ("Annotations/{}", "images/{}"), ("{}/Annotations", "{}/images")],
)
def test_of_two_images_of_a_name_that_of_the_split_is_taken(
    tmp_path: Path, annotations: str, images: str
) -> None:
    for split in ("train", "valid"):
        folder = tmp_path / annotations.format(split)
        write(folder / "a.xml", exports.voc_xml("a.png", [], first=0))
        exports.write_images(tmp_path / images.format(split), {"a.png": []})

    val = open_data_set(tmp_path).open("val")

    assert val.files[1].path == tmp_path / images.format("valid") / "a.png"


def test_a_polygon_counts_where_there_is_no_box(voc: Path) -> None:
    points = "<x1>5</x1><y1>7</y1><x2>24</x2><y2>7</y2><x3>24</x3><y3>16</y3>"

    split = read(voc, f"<object><name>bolt</name><polygon>{points}</polygon></object>")

    assert boxes(split) == [(4, 6, 20, 10)]


def test_a_rotated_box_of_rolabelimg_is_read(voc: Path) -> None:
    rotated = f"<cx>20</cx><cy>20</cy><w>16</w><h>8</h><angle>{math.pi / 2}</angle>"

    split = read(voc, f"<object><name>bolt</name><robndbox>{rotated}</robndbox></object>")

    assert boxes(split) == [pytest.approx((16, 12, 8, 16))]


def test_corners_are_those_before_a_rotation_that_cvat_writes_beside_them(voc: Path) -> None:
    corners = "<xmin>12</xmin><ymin>16</ymin><xmax>28</xmax><ymax>24</ymax>"
    attributes = (
        "<attributes><attribute><name>colour</name><value>red</value></attribute>"
        "<attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    )

    split = read(voc, f"<object><name>bolt</name><bndbox>{corners}</bndbox>{attributes}</object>")

    assert boxes(split) == [pytest.approx((16, 12, 8, 16))]


def test_a_corner_between_pixels_in_one_split_makes_edges_of_all(voc: Path) -> None:
    read(voc, f"<object><name>bolt</name>{BOX.replace('>5<', '>5.5<')}</object>")

    val = open_data_set(voc).open("val")

    assert val.annotations.boxes[-1].bbox == (33, 25, 7, 7)


def test_lists_may_name_the_object_beside_every_image(voc: Path) -> None:
    write(voc / "ImageSets" / "Main" / "train.txt", "a  1\nb -1\n")

    assert len(open_data_set(voc).open("train").images) == 2


@pytest.mark.parametrize("line", ["my photo 2", "my photo 2  1", "my photo 2.png", "x/my photo 2"])
def test_lists_may_name_images_with_spaces_and_suffixes(voc: Path, line: str) -> None:
    (voc / "Annotations" / "a.xml").rename(voc / "Annotations" / "my photo 2.xml")
    write(voc / "ImageSets" / "Main" / "train.txt", f"b\n{line}\nb\n")

    split = open_data_set(voc).open("train")

    assert [image.file_name for image in split.annotations.images] == [
        "JPEGImages/b.png",
        "JPEGImages/a.png",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"<object>{BOX}</object>", r"Annotations/a\.xml, object 1: an object without a class"),
        ("<object><name>bolt</name></object>", r"a\.xml, object 1: bbox cannot be read"),
        (
            f"<object><name>b</name>{BOX.replace('24', 'nan')}</object>",
            "cannot be read",
        ),
        (f"<object><name>b</name>{BOX.replace('24', '1e999')}</object>", "cannot be read"),
        (SIZE.replace("64", "32"), r"is 64 x 48 pixels, the annotations say 32 x 48"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(voc: Path, content: str, said: str) -> None:
    faults = [fault for fault in check_validation(read(voc, content)) if fault.fatal]

    assert len(faults) == 1
    assert re.search(said, faults[0].message)


def test_an_image_without_a_size_is_measured(voc: Path) -> None:
    split = read(voc, f"<object><name>bolt</name>{BOX}</object>")

    assert split.size(1) == (48, 64)


def test_lists_may_have_the_names_of_cvats_subsets(voc: Path) -> None:
    lists = voc / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "Train.txt")
    (lists / "val.txt").rename(lists / "Validation.txt")

    data_set = open_data_set(voc)

    assert [len(data_set.open(split).images) for split in ("train", "val")] == [3, 2]


def test_a_file_that_names_the_image_of_another_is_refused(voc: Path) -> None:
    split = read(voc, f"<filename>b.png</filename><object><name>bolt</name>{BOX}</object>")

    [fault] = [fault for fault in split.annotations.faults if fault.fatal]
    assert fault.image_id == 1
    assert "Annotations/a.xml is of a.png by its name, but says filename b.png" in fault.message


def test_hidden_files_are_not_read(voc: Path) -> None:
    for folder in ("Annotations", "__MACOSX/Annotations"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
        (voc / folder / "._a.xml").write_bytes(b"\0\5\x16\7Mac OS X")

    assert boxes(open_data_set(voc).open("train"))


def test_a_listed_image_without_its_file_is_a_fault(voc: Path) -> None:
    (voc / "Annotations" / "a.xml").unlink()

    faults = check_validation(open_data_set(voc).open("train"))

    assert [fault.kind for fault in faults if fault.fatal] == ["missing-annotation"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<annotation><object>", "not valid XML: no element found"),
        ("", "not valid XML"),
        (
            "<?xml version='1.0' encoding='klingon'?><annotation/>",
            "not valid XML: unknown encoding",
        ),
        ("<html/>", "expected VOC's element annotation, found html"),
        (
            '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
            "entities",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
            "entit",
        ),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_in_one_line(
    voc: Path, content: str, said: str
) -> None:
    write(voc / "Annotations" / "b.xml", content)

    with pytest.raises(ValueError, match=rf"^{voc}/Annotations/b\.xml: .*{said}[^\n]*$"):
        open_data_set(voc).open("val")


def test_listed_files_of_one_name_are_told_apart_by_their_folders(voc: Path) -> None:
    for folder, name in (("front", "a.png"), ("back", "c.png")):
        object_ = f"<filename>{name}</filename><object><name>{folder}</name>{BOX}</object>"
        write(voc / "Annotations" / folder / "1.xml", f"<annotation>{object_}</annotation>")
    write(voc / "ImageSets" / "Main" / "train.txt", "front/1\nAnnotations/back/1\n")

    split = open_data_set(voc).open("train")

    names = {info.id: info.name for info in split.annotations.classes}
    assert [Path(image.file_name).name for image in split.images] == ["a.png", "c.png"]
    assert [names[box.category_id] for box in split.annotations.boxes] == ["front", "back"]


def test_a_listed_name_of_several_files_is_a_fault(voc: Path) -> None:
    content = (voc / "Annotations" / "a.xml").read_text()
    write(voc / "Annotations" / "more" / "b.xml", content)

    faults = check_validation(open_data_set(voc).open("train"))

    said = r"train\.txt lists b, which may be .*/b\.xml, .*more/b\.xml: write its folder"
    messages = [fault.message for fault in faults if fault.fatal]
    assert len(messages) == 1
    assert re.search(said, messages[0])
