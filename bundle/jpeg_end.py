"""Whether a JPEG file has all of its blocks, where a decoder does not tell: it fills in the others.

A colour without a scan shows in the headers. In files that lack their end marker, which some
cameras and copies omit, and in those that TurboJPEG does not decode, the data of every scan is
followed by more, in several ways: if no block of the image is missing, all decode to the same
pixels.
"""

import hashlib
import io
from itertools import pairwise

from PIL import Image

from bundle.jpeg_segments import END, SCAN, filled_scans, segments

_STRIP_PX = 64
_FRAMES = range(0xC0, 0xC3)  # baseline, extended, progressive
_PROGRESSIVE, _LOSSLESS = 0xC2, 0xC3
_COEFFICIENTS = 64  # in a block
# Blocks are also missing if a file is truncated before a restart marker. A decoder resumes at any
# restart marker but the two after the one it expects, so one of the 8 takes effect early enough.
_FILLINGS = (
    b"",
    *(
        b"".join(noise + bytes([0xFF, 0xD0 + (first + step) % 8]) + noise for step in range(8))
        for noise in (b"\x55" * 64, b"\x9c" * 64)
        for first in (0, 4)
    ),
)


def complete_jpeg(data: bytes) -> bytes | None:
    """The file with its end marker, or None if more than that is missing.

    Raises whatever Pillow raises on damaged data.
    """
    body = data.removesuffix(b"\xff")
    completed = body + END
    return completed if _has_every_scan(body) and has_every_block(completed) else None


def has_every_block(data: bytes) -> bool:
    """Whether no scan of a file with an end marker lacks a part of its data.

    Raises whatever Pillow raises on damaged data.
    """
    digests = (_digest(filled_scans(data, filling)) for filling in _FILLINGS)
    return all(one == other for one, other in pairwise(digests))


def lacks_a_colour(data: bytes) -> bool:
    """Whether a file with an end marker has no scan of one of its colours, or none to begin it.

    Decoders take it for grey. A progressive file may also lack scans that make a colour sharper,
    but then it may be whole: the standard demands no more than the first scan of each colour, and
    jpegdropscan makes files smaller by leaving out others.
    """
    left: set[int] = set()
    is_progressive = False
    for marker, content in segments(data):
        if marker in (*_FRAMES, _LOSSLESS) and len(content) > 5:
            left = set(content[6::3])
            is_progressive = marker == _PROGRESSIVE
        elif marker == SCAN and len(content) >= 4:
            begins = content[-3] == 0 or not is_progressive
            left -= set(content[1:-3:2]) if begins else set()
            if not left:
                return False
        elif marker == END[1]:
            return bool(left)
    return False


def _digest(data: bytes) -> bytes:
    """A hash of the pixels, computed in strips, so that a large image is in memory only once."""
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
    image.load()
    digest = hashlib.sha256()
    for top in range(0, image.height, _STRIP_PX):
        strip = image.crop((0, top, image.width, min(top + _STRIP_PX, image.height)))
        digest.update(strip.tobytes())
    return digest.digest()


def _has_every_scan(data: bytes) -> bool:
    """Whether the scans contain every coefficient of every component in full precision.

    Layout of the segments: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, B.2.2 and B.2.3.
    """
    missing: set[tuple[int, int]] | None = None
    for marker, content in segments(data):
        if marker in _FRAMES and len(content) > 5:
            ids = content[6::3]
            missing = {(one, place) for one in ids for place in range(_COEFFICIENTS)}
        elif marker == SCAN and missing is not None and len(content) >= 4:
            first, last, precision = content[-3], content[-2], content[-1] & 0x0F
            if precision == 0:
                ids = content[1:-3:2]
                missing -= {(one, place) for one in ids for place in range(first, last + 1)}
    return missing == set()
