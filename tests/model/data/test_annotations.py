"""The one reader of annotation files: what tools write, and the one meaning it gets."""

import json
import math

import pytest

from tests.model.data.reading import read_annotations

UUID = "6fa459ea-ee8a-3ca4-894e-db77e160355e"


@pytest.fixture
def read(tmp_path):
    """A function that writes a file of one image, one box and one class, and reads it."""

    def write_and_read(image=(), annotation=(), category=()):
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60, **dict(image)}],
            "annotations": [
                {"id": 11, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4],
                 **dict(annotation)},
            ],
            "categories": [{"id": 5, "name": "cat", **dict(category)}],
        }  # fmt: skip
        path = tmp_path / "train.json"
        path.write_text(json.dumps(content))
        return read_annotations(path)

    return write_and_read


@pytest.mark.parametrize(
    ("value", "is_crowd"),
    [(0, False), (None, False), (False, False), ("0", False), ("", False), (0.0, False),
     (1, True), (True, True), ("1", True), ("true", True), (1.0, True)],
)  # fmt: skip
def test_a_crowd_is_marked_in_many_ways(read, value, is_crowd):
    annotations = read(annotation={"iscrowd": value})

    assert annotations.boxes[0].is_crowd is is_crowd
    assert annotations.faults == ()


@pytest.mark.parametrize("segmentation", [[], None])
def test_the_box_around_a_rotated_box_of_cvat_is_taken_and_said_to_be(read, segmentation):
    attributes = {"occluded": False, "rotation": 90.0}
    annotations = read(
        annotation={"bbox": [10, 20, 16, 8], "segmentation": segmentation, "attributes": attributes}
    )

    (fault,) = annotations.faults
    assert annotations.boxes[0].bbox == pytest.approx((14, 16, 8, 16))
    assert (fault.kind, fault.fatal) == ("read-otherwise", False)
    assert "boxes are rotated, as CVAT writes it" in fault.message


@pytest.mark.parametrize(
    "others",
    [
        {"attributes": {"rotation": 0.0}},
        {"attributes": {"rotation": "left"}},
        {"attributes": [{"rotation": 90}]},
        {"attributes": {"rotation": 90}, "segmentation": [[10, 20, 26, 20, 26, 28]]},
    ],
)
def test_a_box_that_is_not_rotated_stays_as_it_is(read, others):
    annotations = read(annotation={"bbox": [10, 20, 16, 8], **others})

    assert annotations.boxes[0].bbox == (10, 20, 16, 8)
    assert annotations.faults == ()


@pytest.mark.parametrize(
    ("value", "area"),
    [(7, 7.0), (7.5, 7.5), ("7", 7.0), (0, 12.0), (None, 12.0), (-1, 12.0), ("", 12.0),
     ("large", 12.0), (math.nan, 12.0), (math.inf, 12.0), ([], 12.0)],
)  # fmt: skip
def test_an_area_is_what_the_file_says_or_that_of_the_box(read, value, area):
    annotations = read(annotation={"area": value})

    assert annotations.boxes[0].area == area
    assert [fault.kind for fault in annotations.faults] == ["read-otherwise"] * (area == 12.0)


@pytest.mark.parametrize("value", [12.0, 13, 13.1])
def test_an_area_may_exceed_its_box_by_rounding(read, value):
    annotations = read(annotation={"area": value})

    assert annotations.boxes[0].area == value
    assert annotations.faults == ()


@pytest.mark.parametrize("value", [13.2, "13.2", 5000])
def test_an_area_larger_than_its_box_is_not_taken_and_said_to_be(read, value):
    annotations = read(annotation={"area": value})

    (fault,) = annotations.faults
    assert annotations.boxes[0].area == 12.0
    assert annotations.boxes[0].stated_area == float(value)  # tells corners from sides
    assert (fault.kind, fault.fatal) == ("read-otherwise", False)
    assert fault.message == (
        "areas are larger than their boxes: using width x height (entries: 1, the first: "
        f"area {json.dumps(value)}, bbox [1, 2, 3, 4] of annotations[0])"
    )


def test_a_missing_area_is_that_of_the_box(read):
    annotations = read()

    assert annotations.boxes[0].area == 12.0
    assert annotations.faults == ()


def test_numbers_of_a_box_may_be_text(read):
    annotations = read(annotation={"bbox": ["1", "2.5", 3, "4e0"]})

    assert annotations.boxes[0].bbox == (1.0, 2.5, 3.0, 4.0)
    assert "boxes are text" in annotations.faults[0].message


@pytest.mark.parametrize(
    "value",
    [None, "1,2,3,4", [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, None], [1, 2, 3, math.nan],
     [1, 2, 3, "x"], [1, 2, 3, True], {"x": 1}, 7],
)  # fmt: skip
def test_what_is_not_a_box_is_shown_as_it_was_found(read, value):
    annotations = read(annotation={"bbox": value})

    (fault,) = annotations.faults
    assert annotations.boxes == ()
    assert (fault.kind, fault.image_id, fault.annotation_id, fault.fatal) == (
        "malformed", 1, 11, True,
    )  # fmt: skip
    assert f"bbox is {json.dumps(value)}, expected four finite numbers" in fault.message


@pytest.mark.parametrize("image_id", ["1", 1.0, " 1 "])
def test_an_image_is_known_by_its_number_in_any_form(read, image_id):
    annotations = read(annotation={"image_id": image_id})

    assert annotations.boxes[0].image_id == 1


@pytest.mark.parametrize("value", ["7", 7.0])
def test_an_id_that_is_a_number_otherwise_written_stays_that_number(read, value):
    annotations = read(image={"id": value}, annotation={"image_id": value})

    assert annotations.images[0].id == annotations.boxes[0].image_id == 7
    assert f"id {json.dumps(value)} of images[0]" in annotations.faults[0].message


@pytest.mark.parametrize("value", [UUID, "img 7", "1e5b"])
def test_ids_that_are_text_are_numbered_and_that_is_said(read, value):
    annotations = read(
        image={"id": value},
        annotation={"image_id": value, "category_id": "cat", "id": value},
        category={"id": "cat"},
    )

    assert annotations.images[0].id == annotations.boxes[0].image_id == 1
    assert annotations.classes[0].id == annotations.boxes[0].category_id == 1
    assert annotations.boxes[0].id == 1
    assert {fault.kind for fault in annotations.faults} == {"read-otherwise"}
    assert f"id {json.dumps(value)} of images[0]" in annotations.faults[0].message


@pytest.mark.parametrize("known", [2, -4, 0])
def test_annotations_without_a_number_get_one_that_no_other_has(tmp_path, known):
    box = {"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [box | {"id": known}, box, box | {"id": "b"}],
        "categories": [{"id": 5, "name": "cat"}],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))

    first, *others = (entry.id for entry in read_annotations(path).boxes)

    assert first == known
    assert len({known, *others}) == 3


@pytest.mark.parametrize("order", [["a", "b", 7], ["b", 7, "a"]])
def test_text_ids_have_the_same_numbers_in_any_order(tmp_path, order):
    categories = [{"id": key, "name": f"class {key}"} for key in order]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))

    annotations = read_annotations(path)

    assert annotations.category_numbers == {"a": 8, "b": 9}
    assert {info.name: info.id for info in annotations.classes} == {
        "class a": 8, "class b": 9, "class 7": 7,
    }  # fmt: skip


@pytest.mark.parametrize("value", [None, True, [], math.nan, 1.5])
def test_what_is_not_an_id_is_malformed(read, value):
    annotations = read(category={"id": value})

    found = f"categories[0]: id is {json.dumps(value)}, expected a whole number or text"
    assert found in [fault.message for fault in annotations.faults]
    assert annotations.classes == ()


@pytest.mark.parametrize(("key", "kind"), [("image_id", "image"), ("category_id", "category")])
@pytest.mark.parametrize("value", [8, "8", UUID])
def test_a_reference_to_nothing_is_shown(read, key, kind, value):
    (fault,) = read(annotation={key: value}).faults

    assert (fault.kind, fault.fatal) == (f"unknown-{kind}", True)
    assert json.dumps(value) in fault.message


@pytest.mark.parametrize("sides", [(40.0, 60.0), ("40", "60")])
def test_a_size_may_be_floats_or_text(read, sides):
    assert read(image={"height": sides[0], "width": sides[1]}).images[0].size == (40, 60)


@pytest.mark.parametrize("value", [None, 0, -5, "high", 40.5, math.nan])
def test_a_size_that_is_none_is_left_to_the_file(read, value):
    annotations = read(image={"height": value})

    assert annotations.images[0].size is None
    assert "taken from their files" in annotations.faults[0].message


@pytest.mark.parametrize("entry", [None, 7, "image", []])
@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_an_entry_that_is_not_an_object_is_shown(tmp_path, section, entry):
    content = {"images": [], "annotations": [], "categories": [], section: [entry]}
    (tmp_path / "train.json").write_text(json.dumps(content))

    faults = read_annotations(tmp_path / "train.json").faults

    assert f"{section}[0] is {json.dumps(entry)}, expected an object" in [f.message for f in faults]


def write_categories(path, categories, used_id):
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}]
    boxes = [{"id": 1, "image_id": 1, "category_id": used_id, "bbox": [1, 2, 3, 4]}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return read_annotations(path)


ROBOFLOW = [
    {"id": 0, "name": "hardware", "supercategory": "none"},
    {"id": 1, "name": "bolt", "supercategory": "hardware"},
    {"id": 2, "name": "nut", "supercategory": "hardware"},
]


def test_roboflows_placeholder_is_not_a_class(tmp_path):
    annotations = write_categories(tmp_path / "train.json", ROBOFLOW, used_id=1)

    assert [info.name for info in annotations.classes] == ["bolt", "nut"]
    assert "0 hardware" in annotations.faults[0].message


def test_a_placeholder_that_has_boxes_is_a_class(tmp_path):
    annotations = write_categories(tmp_path / "train.json", ROBOFLOW, used_id=0)

    assert [info.name for info in annotations.classes] == ["hardware", "bolt", "nut"]


def test_a_class_beside_others_is_not_a_placeholder(tmp_path):
    categories = [{"id": 0, "name": "a", "supercategory": "none"}, *ROBOFLOW[1:]]

    annotations = write_categories(tmp_path / "train.json", categories, used_id=1)

    assert [info.name for info in annotations.classes] == ["a", "bolt", "nut"]


def test_a_name_may_be_a_number(read):
    assert read(category={"name": 7}).classes[0].name == "7"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"images": []}', '{"images": {}}', "\xff", "[" * 9999]
)
def test_a_file_of_another_format_is_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="latin-1")

    with pytest.raises(ValueError, match=r"broken\.json"):
        read_annotations(path)


@pytest.mark.parametrize("content", [[], [{"image_id": 1}], None, "text"])
def test_what_a_file_of_another_format_holds_is_shown(tmp_path, content):
    (tmp_path / "train.json").write_text(json.dumps(content))

    with pytest.raises(ValueError, match=r"expected COCO's format.*; the file holds ") as error:
        read_annotations(tmp_path / "train.json")

    assert str(error.value).endswith(json.dumps(content))


@pytest.mark.parametrize("name", ["", " ", "\n", "\ud800"])
def test_a_blank_or_unwritable_name_is_none(read, name):
    assert [fault.kind for fault in read(category={"name": name}).faults] == ["malformed"]


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.json"):
        read_annotations(tmp_path / "absent.json")
