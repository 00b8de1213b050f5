"""JPEG files that any decoder decodes to the same image, but for small differences in its pixels.

Decoders differ most in what they make of a damaged file, so libjpeg looks for damage here, as it
does where it decodes. On a GPU, the pixels may then come from another decoder.
"""

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from bundle.preprocess import MAX_PIXELS, ImageHeader, read_header

_COLOURS = ("YCbCr", "Gray")  # in files; CMYK and RGB are left to Pillow
_WHOLE_AND_HALF_CHROMA = (0, 2)  # Pillow's numbers of 4:4:4 and 4:2:0


def faultless_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader | None:
    """The header of a JPEG in colour or grey in which libjpeg finds no fault, else None.

    It reads every coefficient, and makes an eighth of the pixels of one channel.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        header = read_header(data, ("JPEG",), max_pixels=max_pixels)
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (height, width) != header.stored_size or colours not in _COLOURS:
            return None
        simplejpeg.decode_jpeg(
            *(data, "GRAY"), min_height=1, min_width=1, min_factor=8, strict=True
        )
    except (ValueError, LookupError):  # simplejpeg has no name for 4:4:1
        return None
    return header


def trial_jpegs() -> list[bytes]:
    """Files to try a decoder on: a soft pattern in colour, twice, and in grey."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    pattern = Image.fromarray(cv2.resize(colours, (333, 250), interpolation=cv2.INTER_CUBIC))
    return [
        *(_encoded(pattern, subsampling=number) for number in _WHOLE_AND_HALF_CHROMA),
        _encoded(pattern.convert("L")),
    ]


def _encoded(image: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()
