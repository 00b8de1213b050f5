"""CVAT for images 1.1: its shapes, its ways to divide, and what is wrong with a file."""

import re
from pathlib import Path

import pytest

from model.data.check import check_validation
from model.data.data_set import open_data_set
from model.data.layouts import find_layout
from model.data.split import Split
from tests.model.data.formats import exports
from tests.model.data.formats.exports import write

LABELS = "<label><name>nut</name></label><label><name>bolt</name></label>"
META = f"<meta><task><labels>{LABELS}</labels></task></meta>"
IMAGE = '<image id="0" name="a.png" width="64" height="48">'


def read(folder: Path, shapes: str, *, image: str = IMAGE) -> Split:
    write(folder / "annotations.xml", f"<annotations>{META}{image}{shapes}</image></annotations>")
    exports.write_images(folder / "images", {"a.png": []})
    return open_data_set(folder).open("all")


@pytest.mark.parametrize(
    ("shape", "bbox"),
    [
        ('<box label="bolt" xtl="4.00" ytl="6.50" xbr="24.00" ybr="16.00"/>', (4, 6.5, 20, 9.5)),
        (
            '<box label="bolt" xtl="10" ytl="20" xbr="30" ybr="24" rotation="90.00"/>',
            (18, 12, 4, 20),
        ),
        ('<polygon label="bolt" points="4.00,6.00;24.00,6.00;14.00,16.00"/>', (4, 6, 20, 10)),
        ('<ellipse label="bolt" cx="20" cy="20" rx="10" ry="5" rotation="90"/>', (15, 10, 10, 20)),
        ('<mask label="bolt" rle="1, 2" left="4" top="6" width="20" height="10"/>', (4, 6, 20, 10)),
    ],
)
def test_the_box_around_a_shape_is_taken(
    tmp_path: Path, shape: str, bbox: tuple[float, ...]
) -> None:
    boxes = read(tmp_path, shape).annotations.boxes

    assert [box.bbox for box in boxes] == [pytest.approx(bbox)]


def test_shapes_without_a_box_are_left_out_and_counted(tmp_path: Path) -> None:
    line = '<polyline label="bolt" points="1.00,2.00;3.00,4.00"/>'
    skeleton = f'<skeleton label="nut">{line.replace("polyline", "points")}</skeleton>'

    split = read(tmp_path, f'{line}{line}{skeleton}<tag label="nut"/>')

    assert split.annotations.boxes == ()
    assert split.annotations.faults[0].message == "left out: polylines (2), skeletons (1), tags (1)"


def test_classes_are_in_the_order_of_the_task(tmp_path: Path) -> None:
    classes = read(tmp_path, "").annotations.classes

    assert [(info.id, info.name) for info in classes] == [(0, "nut"), (1, "bolt")]


def test_points_of_a_skeleton_are_not_classes(tmp_path: Path) -> None:
    point = "<label><name>knee</name><parent>nut</parent></label></labels>"
    meta = META.replace("</labels>", point)
    write(tmp_path / "annotations.xml", f"<annotations>{meta}{IMAGE}</image></annotations>")

    classes = open_data_set(tmp_path).open("all").annotations.classes

    assert [info.name for info in classes] == ["nut", "bolt"]


def test_an_export_in_the_folder_of_every_split_is_read(tmp_path: Path) -> None:
    read(tmp_path / "train", "")
    read(tmp_path / "val", '<box label="bolt" xtl="4" ytl="6" xbr="24" ybr="16"/>')

    data_set = open_data_set(tmp_path)

    assert len(data_set.open("train").annotations.boxes) == 0
    assert len(data_set.open("val").annotations.boxes) == 1


def test_an_image_of_the_same_name_in_another_subset_is_another_image(tmp_path: Path) -> None:
    images = [IMAGE.replace(">", f' subset="{subset}"></image>') for subset in ("Train", "Val")]
    write(tmp_path / "annotations.xml", f"<annotations>{META}{''.join(images)}</annotations>")
    exports.write_images(tmp_path / "images" / "Train", {"a.png": []})
    exports.write_images(tmp_path / "images" / "Val", {"a.png": []})

    val = open_data_set(tmp_path).open("val")

    assert [file.path.parent.name for file in val.files.values()] == ["Val"]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            '<box label="bolt" xtl="4" ytl="nan" xbr="24" ybr="16"/>',
            r"shape 1 \(box\): bbox cannot be read",
        ),
        ('<box label="bolt" xtl="4"/>', r"image a\.png, shape 1 \(box\): bbox cannot be read"),
        ('<polygon label="bolt" points=""/>', r"shape 1 \(polygon\): bbox cannot be read"),
        ('<polygon label="bolt" points="1,2;3"/>', r"shape 1 \(polygon\): bbox cannot be read"),
        ('<polygon label="bolt" points="1,nan;3,4"/>', r"shape 1 \(polygon\): bbox is"),
        (
            '<box label="rod" xtl="4" ytl="6" xbr="24" ybr="16"/>',
            r"class 'rod', expected one of the 2",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, shape: str, said: str) -> None:
    faults = [fault for fault in check_validation(read(tmp_path, shape)) if fault.fatal]

    assert len(faults) == 1
    assert re.search(said, faults[0].message)


def test_an_export_for_video_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "annotations.xml", "<annotations><track id='0' label='bolt'/></annotations>")

    with pytest.raises(ValueError, match=r'export the task again as "CVAT for images 1\.1"'):
        open_data_set(tmp_path).open("all")


def test_entities_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "annotations.xml", '<!DOCTYPE a [<!ENTITY b "b">]><annotations/>')

    with pytest.raises(ValueError, match=r"annotations\.xml: defines entities"):
        find_layout(tmp_path)
