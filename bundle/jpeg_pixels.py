"""The pixels of a JPEG from libjpeg-turbo itself, in about two thirds of the time Pillow takes."""

import re

import numpy as np
import numpy.typing as npt
import simplejpeg

from bundle.jpeg_end import has_every_block
from bundle.jpeg_segments import with_plain_scans

_LOST_BLOCKS = re.compile("premature end of data segment|found marker")  # libjpeg's warnings
_ODD_SCANS = "Invalid SOS parameters"  # for sequential JPEG; decoders pass over them


def decoded_by_libjpeg(
    data: bytes, size: tuple[int, int], *, least_side: int | None = None
) -> npt.NDArray[np.uint8] | None:
    """What Pillow would return for a JPEG in colour or grey; None if Pillow has to decide.

    Args:
        size: its height and width, as Pillow reads them.
        least_side: see `bundle.preprocess.decode_image`.

    Raises:
        ValueError: blocks are missing, which Pillow would fill with grey.
    """
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != size:
            raise LookupError
        smaller = {} if least_side is None else _smaller(*size, least_side)
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=True, **smaller))
    except (LookupError, ValueError) as error:
        # Strict, so for a warning too. It knows neither all ways to subsample nor lossless grey.
        if _ODD_SCANS in str(error) and (plain := with_plain_scans(data)) != data:
            return decoded_by_libjpeg(plain, size, least_side=least_side)
        if _LOST_BLOCKS.search(str(error)) or _lacks_blocks(data):
            raise ValueError("a part of its pixels is missing") from error
        return None


def _lacks_blocks(data: bytes) -> bool:
    """Whether Pillow would fill in blocks; False if it notices by itself that there is no end."""
    try:
        return not has_every_block(data)
    except OSError:
        return False


def _smaller(height: int, width: int, least_side: int) -> dict[str, int]:
    """How to tell simplejpeg one of the fractions that libjpeg-turbo has fast code for."""
    short_side = min(width, height)
    factor = max(f for f in (1, 2, 4, 8) if f == 1 or -(-short_side // f) >= least_side)
    return {
        "min_width": -(-width // factor),
        "min_height": -(-height // factor),
        "min_factor": factor,
    }
