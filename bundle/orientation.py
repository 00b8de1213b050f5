"""The EXIF orientation of an image: how it is turned to be displayed."""

import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
from cv2.typing import MatLike
from PIL import Image

# Whatever Pillow raises on damaged data, of EXIF and of images in JPEG, PNG and WebP.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Warning,  # raised instead of printed where warnings are errors
)
EXIF_ORIENTATION = 0x0112
_FIRST_TURNED = 5  # from this orientation on, rows and columns are swapped
_UPRIGHT: dict[int, Callable[[MatLike], MatLike]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.flip(pixels, -1),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def exif_orientation(content: bytes) -> int:
    """The orientation, 1 to 8; 1 if it is missing or unreadable, as viewers ignore it too.

    Args:
        content: of an EXIF segment or chunk; may be empty.
    """
    if not content:
        return 1
    exif = Image.Exif()
    try:
        exif.load(content)
        orientation = int(exif.get(EXIF_ORIENTATION, 1))
    except DECODER_ERRORS:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) as stored of an image's size as displayed, or the other way round."""
    return size[::-1] if orientation >= _FIRST_TURNED else size


def upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8 as they are displayed."""
    if orientation in _UPRIGHT:
        return np.asarray(_UPRIGHT[orientation](pixels), np.uint8)
    return pixels
