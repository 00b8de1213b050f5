"""Images with 16 bits per sample, many of which hold only the 10, 12 or 14 bits of a sensor.

Their high bytes alone would be black, so samples are scaled by the largest one present. The PNG
chunk sBIT does not help: it says how many bits the samples had before they were scaled to 16, but
files with unscaled samples carry it too.
"""

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

_SENSOR_BITS = (8, 10, 12, 14, 16)
_PNG_DEPTH, _PNG_COLOUR = 24, 25  # offsets in the header
_COLOUR_TYPES = {2, 4, 6}  # RGB, grey with alpha, RGBA

Uint8Array = npt.NDArray[np.uint8]
Uint16Array = npt.NDArray[np.uint16]


def scale_grey(image: Image.Image) -> Image.Image:
    """Convert an image from mode I;16 to L; its transparent colour becomes white."""
    samples = np.asarray(image)
    is_key = samples == image.info.get("transparency", -1)
    grey = samples >> _excess_bits(samples[~is_key])
    return Image.fromarray(np.where(is_key, 255, grey).astype(np.uint8))


def is_deep_colour(png: bytes) -> bool:
    """Whether the header of a PNG declares colours of 16 bits."""
    return png[_PNG_DEPTH] == 16 and png[_PNG_COLOUR] in _COLOUR_TYPES


def scale_colour(image: Image.Image, png: bytes) -> Image.Image:
    """A decoded PNG; if the high bytes that Pillow keeps hold too little, RGBA from all 16 bits.

    Raises:
        ValueError: OpenCV cannot decode what Pillow could.
    """
    if not is_deep_colour(png):
        return image
    high_bytes = np.asarray(image)
    num_colours = 1 if image.mode == "LA" else 3
    if high_bytes[..., :num_colours].max() >= 1 << (_SENSOR_BITS[-2] - 8):
        return image
    samples = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("its 16-bit samples cannot be decoded")
    order = cv2.COLOR_BGR2RGBA if samples.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    colour = np.asarray(cv2.cvtColor(samples, order), np.uint16)
    excess_bits = _excess_bits(colour[..., :3])
    alpha_bits = max(excess_bits, _excess_bits(colour[..., 3]))
    shifts = np.array([excess_bits] * 3 + [alpha_bits], np.uint16)
    return Image.fromarray((colour >> shifts).astype(np.uint8))


def _excess_bits(samples: Uint16Array) -> int:
    """How far to shift samples so that they fit into a byte."""
    largest = int(samples.max(initial=0))
    return next(bits for bits in _SENSOR_BITS if largest < 1 << bits) - 8
