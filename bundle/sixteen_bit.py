"""Images with 16 bits per sample, many of which hold only the 10, 12 or 14 bits of a sensor.

Their high bytes alone would be black, so samples are scaled by the largest one present. The PNG
chunk sBIT does not help: it says how many bits the samples had before they were scaled to 16, but
files with unscaled samples carry it too.
"""

import io

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

_SENSOR_BITS = (8, 10, 12, 14, 16)
_PNG_DEPTH, _PNG_COLOUR = 24, 25  # offsets in the header
_COLOUR_TYPES = {2, 4, 6}  # RGB, grey with alpha, RGBA
_TIFF_BITS, _TIFF_COLOURS, _TIFF_ORDER = 258, 262, 284  # tags
_WHITE_IS_ZERO, _PLANES = 0, 2
_OTHER_ORDER = {";16L": ";16B", ";16B": ";16L", ";16N": ";16B"}  # N: this machine's, ";16L"

Uint8Array = npt.NDArray[np.uint8]
Uint16Array = npt.NDArray[np.uint16]


def scale_grey(image: Image.Image) -> Image.Image:
    """Convert an image from mode I;16 to L; its transparent colour becomes white."""
    samples = np.asarray(image)
    is_key = samples == image.info.get("transparency", -1)
    grey = samples >> _excess_bits(samples[~is_key])
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        is_inverted = image.tag_v2.get(_TIFF_COLOURS) == _WHITE_IS_ZERO
        grey = 255 - grey if is_inverted else grey
    return Image.fromarray(np.where(is_key, 255, grey).astype(np.uint8))


def is_deep_colour(png: bytes) -> bool:
    """Whether the header of a PNG declares colours of 16 bits."""
    return png[_PNG_DEPTH] == 16 and png[_PNG_COLOUR] in _COLOUR_TYPES


def is_mixed_up(image: Image.Image) -> bool:
    """Whether it is a TIFF stored plane by plane of a kind that Pillow misreads without a word."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    bits = image.tag_v2.get(_TIFF_BITS, (1,))
    is_in_planes = image.tag_v2.get(_TIFF_ORDER) == _PLANES and len(bits) > 1
    return is_in_planes and (image.mode == "LA" or max(bits) > 8)


def scale_colour(image: Image.Image, data: bytes) -> Image.Image:
    """A decoded PNG or TIFF; if the high bytes that Pillow keeps hold too little, from all bits.

    Raises:
        ValueError: OpenCV cannot decode a PNG that Pillow could.
    """
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    if not (_is_deep_tiff(image) if is_tiff else is_deep_colour(data)):
        return image
    high_bytes = np.asarray(image)
    num_colours = 1 if image.mode == "LA" else 3
    if high_bytes[..., :num_colours].max() >= 1 << (_SENSOR_BITS[-2] - 8):
        return image
    colour = _tiff_samples(high_bytes, data) if is_tiff else _png_samples(data)
    shifts = np.full(colour.shape[2], _excess_bits(colour[..., :3]), np.uint16)
    if len(shifts) == 4:
        shifts[3] = max(shifts[0], _excess_bits(colour[..., 3]))
    return Image.fromarray((colour >> shifts).astype(np.uint8))


def _is_deep_tiff(image: Image.Image) -> bool:
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    return image.mode in ("RGB", "RGBA") and max(image.tag_v2.get(_TIFF_BITS, (1,))) == 16


def _tiff_samples(high_bytes: Uint8Array, tiff: bytes) -> Uint16Array:
    """(H, W, 3 or 4): Pillow keeps the low bytes if it is told the wrong order of bytes."""
    with Image.open(io.BytesIO(tiff), formats=["TIFF"]) as image:
        image.tile = [tile._replace(args=_other_order(tile.args)) for tile in image.tile]
        low_bytes = np.asarray(image)
    samples: Uint16Array = (high_bytes.astype(np.uint16) << 8) + low_bytes
    return samples


def _other_order(args: object) -> tuple[object, ...]:
    assert isinstance(args, tuple)
    mode = str(args[0])
    return mode[:-4] + _OTHER_ORDER[mode[-4:]], *args[1:]


def _png_samples(png: bytes) -> Uint16Array:
    """(H, W, 4) RGBA."""
    samples = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("its 16-bit samples cannot be decoded")
    order = cv2.COLOR_BGR2RGBA if samples.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return np.asarray(cv2.cvtColor(samples, order), np.uint16)


def _excess_bits(samples: Uint16Array) -> int:
    """How far to shift samples so that they fit into a byte."""
    largest = int(samples.max(initial=0))
    return next(bits for bits in _SENSOR_BITS if largest < 1 << bits) - 8
