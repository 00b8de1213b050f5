import io

import numpy as np
import pytest
from PIL import Image

from bundle.manifest import ClassInfo
from bundle.postprocess import Detections
from service.render import ImageFormat, class_colour, render

CLASSES = [ClassInfo(id=1, name="cat"), ClassInfo(id=7, name="dog")]


def detections(*boxes: tuple[float, float, float, float], label: int = 0) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.full(count, label, np.int64),
    )


def drawn(image: np.ndarray, found: Detections, image_format: ImageFormat) -> Image.Image:
    return Image.open(io.BytesIO(render(image, found, classes=CLASSES, image_format=image_format)))


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_a_drawing_is_a_file_of_the_format_asked_for(image_format: ImageFormat) -> None:
    drawing = drawn(np.zeros((600, 800, 3), np.uint8), detections(), image_format)

    assert drawing.format == image_format
    assert drawing.size == (800, 600)


def test_the_image_is_unchanged_away_from_the_boxes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)

    drawing = np.array(drawn(image, detections((100, 200, 300, 150)), ImageFormat.PNG))

    np.testing.assert_array_equal(drawing[360:], image[360:])
    np.testing.assert_array_equal(drawing[210:340, 110:390], image[210:340, 110:390])


def test_box_and_label_have_the_colour_of_the_class() -> None:
    image = np.zeros((600, 800, 3), np.uint8)

    drawing = np.array(drawn(image, detections((100, 200, 300, 150), label=1), ImageFormat.PNG))

    for y, x in [(200, 250), (350, 250), (275, 100), (275, 400)]:
        assert tuple(drawing[y, x]) == class_colour(1)
    plate = drawing[180:198, 102:150].reshape(-1, 3)
    assert (plate == class_colour(1)).all(axis=1).mean() > 0.3
    assert len(np.unique(plate, axis=0)) > 2


def test_classes_have_different_colours_that_stay() -> None:
    colours = [class_colour(label) for label in range(80)]

    assert len(set(colours)) == 80
    assert colours == [class_colour(label) for label in range(80)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((96, 128), (512, 384)),
        ((1, 1), (512, 512)),
        ((1, 20_000), (4096, 1)),
        ((6000, 50), (34, 4096)),
    ],
)
def test_images_are_scaled_to_a_size_that_can_be_looked_at(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    whole = (0, 0, size[1], size[0])

    drawing = drawn(np.zeros((*size, 3), np.uint8), detections(whole), ImageFormat.JPEG)

    assert drawing.size == expected


def test_boxes_are_scaled_with_the_image() -> None:
    image = np.zeros((128, 128, 3), np.uint8)

    drawing = np.array(drawn(image, detections((64, 64, 32, 32)), ImageFormat.PNG))

    assert tuple(drawing[300, 256]) == class_colour(0)
    assert tuple(drawing[300, 384]) == class_colour(0)


@pytest.mark.parametrize(
    "box", [(0, 0, 5, 5), (795, 595, 5, 5), (0, 0, 800, 600), (800, 600, 0, 0)]
)
def test_labels_stay_inside_the_image(box: tuple[float, float, float, float]) -> None:
    drawing = np.array(drawn(np.zeros((600, 800, 3), np.uint8), detections(box), ImageFormat.PNG))

    coloured = (drawing == class_colour(0)).all(axis=2)
    assert coloured.sum() > 300


def test_the_best_detection_is_drawn_on_top() -> None:
    found = Detections(
        np.array([[100, 200, 50, 50], [100, 200, 50, 50]], np.float32),
        np.array([0.9, 0.5], np.float32),
        np.array([1, 0]),
    )

    drawing = np.array(drawn(np.zeros((600, 800, 3), np.uint8), found, ImageFormat.PNG))

    assert tuple(drawing[250, 125]) == class_colour(1)
