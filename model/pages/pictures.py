"""Images with boxes: inline SVG over a small JPEG."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from bundle.terminal import shortened

NUM_COLOURS = 10  # .c0 to .c9 in the style
MAX_SIDE_PX = 320
MAX_BOXES = 200  # drawn in an image; more would hide it
_QUALITY = 75


@dataclass(frozen=True)
class DrawnBox:
    """A box (x, y, width, height) in pixels of its image, with its text and number of colour."""

    bbox: Sequence[float]
    text: str
    colour: int = 0
    is_dashed: bool = False


def picture(image: np.ndarray, boxes: Sequence[DrawnBox], *, caption: str) -> Markup:
    """A figure of an image (H, W, 3) uint8 RGB with its boxes."""
    height, width = image.shape[:2]
    if len(boxes) > MAX_BOXES:
        caption = f"{caption}; {MAX_BOXES} of {len(boxes)} boxes drawn"
    letter = max(height, width) / 28  # pixels high
    drawn = Markup().join(_box(box, letter) for box in boxes[:MAX_BOXES])
    return Markup(
        '<figure class="picture"><svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<image width="{}" height="{}" preserveAspectRatio="none" href="{}"/>{}</svg>'
        "<figcaption>{}</figcaption></figure>"
    ).format(width, height, caption, width, height, _as_url(image), drawn, caption)


def missing_picture(caption: str) -> Markup:
    """A figure in place of an image that cannot be shown; the caption says why."""
    return Markup('<figure class="picture"><figcaption>{}</figcaption></figure>').format(caption)


def _box(box: DrawnBox, letter: float) -> Markup:
    x, y, w, h = box.bbox
    return Markup(
        '<g class="c{}"><rect class="box{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>'
        '<text class="label" x="{:.2f}" y="{:.2f}" font-size="{:.2f}">{}</text></g>'
    ).format(
        *(box.colour % NUM_COLOURS, " dashed" if box.is_dashed else ""),
        *(x, y, max(w, 0), max(h, 0)),
        *(x + 0.2 * letter, max(y - 0.25 * letter, letter), letter, shortened(box.text)),
    )


def _as_url(image: np.ndarray) -> str:
    small = Image.fromarray(image)
    small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
