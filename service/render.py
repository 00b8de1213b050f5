"""Detections drawn on their image, for people to look at."""

import colorsys
import io
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from bundle.manifest import ClassInfo
from bundle.postprocess import Detections

# Long side of the drawing in pixels: on a smaller one, the labels cover the objects; a larger one
# takes seconds to compress and shows no more on a screen.
_SMALLEST_PX = 512
_LARGEST_PX = 4096
_GOLDEN_RATIO = 0.618034  # steps of this size spread any number of hues around the circle

Colour = tuple[int, int, int]


class ImageFormat(StrEnum):
    """File formats of a drawing, by Pillow's names."""

    PNG = "PNG"
    JPEG = "JPEG"


def render(
    image: npt.NDArray[np.uint8],
    detections: Detections,
    *,
    classes: Sequence[ClassInfo],
    image_format: ImageFormat,
) -> bytes:
    """The image (H, W, 3) RGB with a labelled box for each detection, as a file.

    An image whose long side is under 512 or over 4096 pixels is scaled to that limit.
    """
    canvas, scale_xy = _viewing_size(Image.fromarray(image))
    draw = ImageDraw.Draw(canvas)
    line_width = max(2, max(canvas.size) // 400)
    font = ImageFont.load_default(size=max(14, max(canvas.size) // 55))
    x1y1 = detections.boxes_xywh_px[:, :2] * scale_xy
    x2y2 = x1y1 + detections.boxes_xywh_px[:, 2:] * scale_xy
    found = list(zip(x1y1.tolist(), x2y2.tolist(), detections.labels.tolist(), strict=True))
    for corner, opposite, label in reversed(found):  # the best one is drawn last, on top
        draw.rectangle((*corner, *opposite), outline=class_colour(label), width=line_width)
    for (corner, _, label), score in reversed(list(zip(found, detections.scores, strict=True))):
        _draw_label(draw, corner, f"{classes[label].name} {score:.2f}", class_colour(label), font)
    buffer = io.BytesIO()
    canvas.save(buffer, image_format, quality=92, compress_level=3)
    return buffer.getvalue()


def class_colour(label: int) -> Colour:
    """The colour of a class, the same in every drawing; neighbouring labels differ clearly."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _viewing_size(image: Image.Image) -> tuple[Image.Image, npt.NDArray[np.float64]]:
    """The image scaled for viewing, and how much larger it is in (x, y)."""
    long_side = max(image.size)
    scale = min(max(long_side, _SMALLEST_PX), _LARGEST_PX) / long_side
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    scaled = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
    return scaled, np.divide(size, image.size)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Draw a label above the box's top left corner, moved as needed to fit into the image."""
    right, bottom = draw.textbbox((0, 0), text, font=font)[2:]
    padding = bottom // 5 + 1
    width, height = right + 2 * padding, bottom + 2 * padding
    x = max(0.0, min(corner[0], draw.im.size[0] - width))
    y = max(0.0, min(corner[1] - height, draw.im.size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.text(
        (x + padding, y + padding), text, fill="black" if luminance > 128 else "white", font=font
    )
