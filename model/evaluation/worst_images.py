"""Pictures of the images with the most errors, with their boxes and detections."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from model.data.evaluation_data import EvaluationData
from model.evaluation.errors import ImageErrors, worst
from model.pages.pictures import DrawnBox, missing_picture, picture

NUM_PICTURES = 50
# Numbers of colours of the style: green, yellow, red, purple.
RIGHT, MISSED, FALSE, CONFUSED = 0, 1, 3, 4


def draw_worst(
    errors: Sequence[ImageErrors], dataset: EvaluationData, *, ground_truth: Mapping[str, Any]
) -> list[Markup]:
    """At most NUM_PICTURES, the worst first: boxes dashed, detections solid.

    An image that cannot be read is replaced by the reason.
    """
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    files = {image["id"]: image.get("file_name") for image in ground_truth["images"]}
    index = {dataset.image_id(number): number for number in range(len(dataset))}
    return [
        _draw(image, dataset, index[image.image_id], files[image.image_id], names)
        for image in worst(errors, NUM_PICTURES)
    ]


def _draw(
    image: ImageErrors,
    dataset: EvaluationData,
    index: int,
    file: str | None,
    names: Mapping[int, str],
) -> Markup:
    counts = (
        ("missed", image.missed),
        ("false", image.false),
        ("of another class", image.confused),
    )
    told = ", ".join(f"{len(found)} {kind}" for kind, found in counts if found)
    try:
        pixels = dataset.read_image(index)
    except ValueError as error:
        return missing_picture(f"{told}: {error}")
    boxes = list(_boxes(image, names))
    return picture(pixels, boxes, caption=f"{file or f'image {image.image_id}'}: {told}")


def _boxes(image: ImageErrors, names: Mapping[int, str]) -> Iterator[DrawnBox]:
    """Errors first, as the number of boxes drawn is limited."""
    for box in image.missed:
        yield DrawnBox(box["bbox"], names[box["category_id"]], MISSED, is_dashed=True)
    for detection, box in image.confused:
        yield DrawnBox(box["bbox"], "", CONFUSED, is_dashed=True)
        told = f"{_label(detection, names)}, is {names[box['category_id']]}"
        yield DrawnBox(detection["bbox"], told, CONFUSED)
    for detection in image.false:
        yield DrawnBox(detection["bbox"], _label(detection, names), FALSE)
    for detection, box in image.right:
        yield DrawnBox(box["bbox"], "", RIGHT, is_dashed=True)
        yield DrawnBox(detection["bbox"], _label(detection, names), RIGHT)


def _label(detection: Mapping[str, Any], names: Mapping[int, str]) -> str:
    return f"{names[detection['category_id']]} {detection['score']:.2f}"
