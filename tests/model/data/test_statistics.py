"""The lines about a split, in numbers that can be counted by hand."""

from pathlib import Path

from bundle.manifest import ClassInfo
from bundle.preprocess import ImageHeader
from model.data.annotations import Annotations, BoxEntry, ImageEntry
from model.data.image_file import ImageFile
from model.data.split import Split
from model.data.statistics import Statistics, describe_content

CLASSES = (ClassInfo(id=5, name="cat"), ClassInfo(id=6, name="dog"))
SIZES = {1: (40, 60), 2: (80, 60)}  # height and width by image id


def box(width, height, *, x=0, category_id=5, is_crowd=False):
    return BoxEntry(1, 1, category_id, (x, 0, width, height), None, is_crowd)


def lines(boxes, *, sizes=SIZES, classes=CLASSES):
    images = tuple(ImageEntry(image_id, "a.png", None) for image_id in sizes)
    files = {image_id: ImageFile(Path("a.png"), ImageHeader(size, 1), b"1")
             for image_id, size in sizes.items()}  # fmt: skip
    annotations = Annotations(Path("train.json"), images, tuple(boxes), classes, (), "")
    return list(describe_content(Statistics.of(Split(annotations, files, ()))))


def test_images_classes_sizes_and_shapes_are_told():
    boxes = [box(10, 40), box(96, 96), box(32, 32), box(20, 5, category_id=6)]
    crowd, outside, of_no_class = (
        box(60, 40, is_crowd=True),
        box(9, 9, x=99),
        box(9, 9, category_id=7),
    )

    found = lines([*boxes, crowd, outside, of_no_class])

    assert found == [
        "images: 2, 60 pixels wide, 40 to 80 high, 1 without objects; crowds: 1",
        "classes: 2; boxes: 4: cat 3, dog 1",
        "sides of boxes (roots of their areas): 10 to 96 pixels, half under 26; 50% small, "
        "25% medium, 25% large",
        "width / height of boxes: 0.25 to 4.00; objects in an image: 0 to 4, 2.0 on average",
    ]


def test_of_many_classes_the_most_and_the_least_common_are_named():
    classes = tuple(ClassInfo(id=number, name=f"c{number}") for number in range(8))
    boxes = [box(9, 9, category_id=number) for number in range(7) for _ in range(number + 1)]

    (_, line, *_) = lines(boxes, classes=classes)

    assert line == "classes: 8; boxes: 28: c6 7, c5 6, c4 5, ..., c1 2, c0 1, c7 0"


def test_only_the_beginning_of_a_long_name_is_told():
    found = lines([box(9, 9)], classes=(ClassInfo(id=5, name="c" * 3000),))

    assert f"boxes: 1: {'c' * 57}... 1" in found[1]


def test_what_is_not_there_is_said():
    assert lines([], sizes={}) == ["no images"]
    assert lines([]) == [
        "images: 2, 60 pixels wide, 40 to 80 high, 2 without objects; crowds: 0",
        "classes: 2; no boxes",
    ]
