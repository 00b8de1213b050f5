"""What a data set as a whole shows: box formats, crowds, classes, full images, leaks."""

from pathlib import Path

import pytest

from bundle.manifest import ClassInfo
from bundle.preprocess import ImageHeader
from model.config import ModelConfig
from model.data.annotations import Annotations, BoxEntry, ImageEntry
from model.data.doubts import doubts, other_classes, shared_images
from model.data.image_file import ImageFile
from model.data.split import Split

MODEL = ModelConfig(num_queries=6, num_detections=5)


CAT, DOG, COW = (
    ClassInfo(id=5, name="cat"),
    ClassInfo(id=6, name="dog"),
    ClassInfo(id=7, name="cow"),
)


def split_of(
    boxes,
    *,
    areas=(),
    crowds=(),
    orientation=1,
    size=(40, 60),
    stated=True,
    digest=b"1",
    classes=(CAT, DOG),
) -> Split:
    """One image, of 60 x 40 pixels by default, with boxes [x, y, w, h] of class 5."""
    entries = tuple(
        BoxEntry(number, 1, 5, (x, y, w, h), areas[number] if areas else None, number in crowds)
        for number, (x, y, w, h) in enumerate(boxes)
    )
    images = (ImageEntry(1, "1.png", size if stated else None),)
    annotations = Annotations(Path("train.json"), images, entries, classes, (), "")
    file = ImageFile(Path("1.png"), ImageHeader(size, orientation), digest)
    return Split(annotations, {1: file}, ())


def doubts_of(split: Split) -> dict[str, tuple[bool, str]]:
    """By kind, but for classes without a box and copies: whether it is fatal, and the message."""
    found = {fault.kind: (fault.fatal, fault.message) for fault in doubts(split, MODEL)}
    del found["empty-classes"]
    found.pop("repeated-boxes", None)
    return found


def test_half_of_the_boxes_being_crowds_is_said():
    boxes = [(1, 1, 10, 10)] * 4

    fatal, message = doubts_of(split_of(boxes, crowds=(0, 3)))["crowds"]

    assert not fatal
    assert "2 of 4 (50%)" in message
    assert "not trained on" in message


def test_nothing_but_crowds_is_refused():
    (fault,) = doubts(split_of([(1, 1, 10, 10)] * 4, crowds=range(4)), MODEL)

    assert (fault.kind, fault.fatal) == ("all-crowds", True)
    assert "set iscrowd to 0" in fault.message


def test_a_class_without_a_box_is_named():
    (fault,) = doubts(split_of([(1, 1, 10, 10)]), MODEL)

    assert (fault.kind, fault.fatal) == ("empty-classes", False)
    assert fault.message.endswith("6 dog")


@pytest.mark.parametrize(
    ("boxes", "areas"),
    [
        ([(10, 10, 20, 30), (5, 5, 15, 10)], [200.0, 50.0]),  # areas tell
        ([(40, 20, 55, 35), (30, 25, 50, 38), (1, 1, 9, 9)], ()),  # most would stick out
    ],
)
def test_corners_taken_for_width_and_height_are_refused(boxes, areas):
    fatal, message = doubts_of(split_of(boxes, areas=areas))["corner-boxes"]

    assert fatal
    assert f"[{', '.join(map(str, boxes[0]))}] of image 1" in message
    assert "x2 - x1" in message


@pytest.mark.parametrize(
    ("boxes", "areas"),
    [
        ([(10, 10, 20, 30), (5, 5, 15, 10)], [600.0, 150.0]),
        ([(10, 10, 20, 30), (5, 5, 15, 10)], [410.0, 93.0]),  # of masks
        ([(10, 10, 20, 30), (10, 10, 20, 25), (5, 5, 15, 10)], [5400.0, 4500.0, 50.0]),  # too large
        ([(0, 0, 60, 40)], [2400.0]),  # the same either way
        ([(40, 20, 55, 35), (1, 1, 9, 9)], ()),
        ([(-5, -5, 70, 50)], ()),
    ],
)
def test_sound_boxes_are_not_taken_for_corners(boxes, areas):
    assert doubts_of(split_of(boxes, areas=areas)) == {}


def test_centres_taken_for_corners_are_refused():
    centres = [
        (50, 30, 20, 20),
        (52, 8, 16, 10),
        (10, 35, 18, 10),
        (48, 20, 24, 30),
        (30, 33, 9, 14),
    ]

    fatal, message = doubts_of(split_of([(10, 10, 5, 5), *centres]))["centre-boxes"]

    assert fatal
    assert "[10, 10, 5, 5] of image 1" in message
    assert "cx - width / 2" in message


@pytest.mark.parametrize(
    "boxes",
    [
        [(50, 30, 20, 20), (30, 20, 10, 10), (45, 2, 40, 5)],  # sloppy, but few
        [(50, 30, 12, 12)] * 5 + [(30, 20, 10, 10)] * 96,  # and few of many
        [(50, 30, 12, 12)] * 9 + [(0, 20, 10, 10)],  # this one would leave the image as a centre
    ],
)
def test_boxes_that_leave_the_image_are_not_taken_for_centres(boxes):
    assert "centre-boxes" not in doubts_of(split_of(boxes))


def test_boxes_in_parts_of_the_image_are_refused():
    fatal, message = doubts_of(split_of([(0.1, 0.2, 0.5, 0.5), (0, 0, 1, 1)]))["normalised-boxes"]

    assert fatal
    assert "[0.1, 0.2, 0.5, 0.5] of image 1" in message


def test_copies_of_a_box_are_counted():
    split = split_of([(1, 1, 10, 10), (2, 2, 9, 9), (1, 1, 10, 10), (1, 1, 10, 10)])

    (message,) = [f.message for f in doubts(split, MODEL) if f.kind == "repeated-boxes"]

    assert message.startswith("boxes with the image, class and sides of another: 2 of 4")
    assert "[1, 1, 10, 10] of class 5 in image 1, which occurs 3 times" in message


@pytest.mark.parametrize(("count", "limits"), [(5, []), (6, ["5"]), (7, ["6", "5"])])
def test_more_objects_than_the_model_finds_are_counted(count, limits):
    split = split_of([(1, 1, 10, 10)] * count)

    messages = [f.message for f in doubts(split, MODEL) if f.kind == "many-objects"]

    assert [message.split()[5].rstrip(":") for message in messages] == limits
    assert all(f"image 1 has {count}" in message for message in messages)


@pytest.mark.parametrize(
    "untold",
    [
        {"orientation": 3},
        {"orientation": 6, "size": (40, 40)},
        {"orientation": 6, "stated": False},
    ],
    ids=["upside down", "square", "no size stated"],
)
def test_an_image_turned_by_exif_is_a_doubt_where_no_size_shows_it(untold):
    assert "turned-images" in doubts_of(split_of([(1, 1, 10, 10)], **untold))
    assert doubts_of(split_of([(1, 1, 10, 10)], orientation=6)) == {}


def test_an_image_of_both_splits_is_found_by_its_bytes():
    train, same, other = (split_of([(1, 1, 9, 9)], digest=digest) for digest in (b"1", b"1", b"2"))

    (fault,) = shared_images(train, same)

    assert not fault.fatal
    assert "training images too: 1 of 1, such as" in fault.message
    assert shared_images(train, other) == []


@pytest.mark.parametrize(
    ("classes", "is_fatal", "message"),
    [
        ((CAT, DOG, COW), True, "7 cow of val are not classes of train, which has 5 cat, 6 dog"),
        ((CAT, ClassInfo(id=6, name="Dog")), True, "6 Dog of val"),
        ((CAT, ClassInfo(id=9, name="dog")), True, "9 dog of val"),
        ((CAT,), False, "6 dog of train are not classes of val: AP will say nothing about them"),
    ],
)
def test_another_list_of_classes_in_val_is_reported(classes, is_fatal, message):
    train, val = split_of([(1, 1, 9, 9)]), split_of([(1, 1, 9, 9)], classes=classes)

    (fault,) = other_classes(train, val)

    assert (fault.kind, fault.fatal) == ("other-classes", is_fatal)
    assert message in fault.message


def test_the_order_of_classes_in_val_is_free():
    train, val = (split_of([(1, 1, 9, 9)], classes=order) for order in ((CAT, DOG), (DOG, CAT)))

    assert list(other_classes(train, val)) == []
