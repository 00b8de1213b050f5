"""The header of an ordinary JPEG file, without the library that reads every kind."""

from typing import Literal, NamedTuple

from bundle.jpeg_segments import SCAN

_APP1, _APP2 = 0xE1, 0xE2
_EXIF = b"Exif\0\0"
_SEVERAL = b"MPF\0"  # images in one file
_FRAMES = {0xC0: False, 0xC1: False, 0xC2: True}  # whether it is progressive
_OTHERS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # tables, comments, what cameras add
_MOST_SEGMENTS = 64
_MOST_TAGS = 100  # thousands take Pillow 10 ms


class JpegHeader(NamedTuple):
    """What stands before the pixels of a file.

    Attributes:
        num_colours: 1 for grey, 3 for colour, 4 for print.
        is_decoded_at_its_end: see `bundle.jpeg_segments.is_decoded_at_its_end`.
        exif: as Pillow calls it; empty if there is none.
    """

    height: int
    width: int
    num_colours: int
    is_decoded_at_its_end: bool
    exif: bytes


def ordinary_jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a file, in microseconds; None if it is in any way unusual.

    Pillow then says what is wrong with it, if anything is.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    frame: tuple[int, int, int, bool] | None = None
    exif = b""
    position = 2
    for _ in range(_MOST_SEGMENTS):
        start = position + 4
        if start > len(data) or data[position] != 0xFF:
            return None
        marker = data[position + 1]
        position += 2 + int.from_bytes(data[position + 2 : start])
        if not start <= position <= len(data):
            return None
        if marker == SCAN:
            return _header(frame, num_in_scan=data[start], exif=exif)
        if marker in _FRAMES and frame is None and position >= start + 6 and data[start] == 8:
            height = int.from_bytes(data[start + 1 : start + 3])
            width = int.from_bytes(data[start + 3 : start + 5])
            frame = height, width, data[start + 5], _FRAMES[marker]
        elif marker == _APP1 and data.startswith(_EXIF[:4], start):
            if exif or not _is_ordinary(exif := data[start:position]):
                return None
        elif marker not in _OTHERS or (marker == _APP2 and data.startswith(_SEVERAL, start)):
            return None
    return None


def _is_ordinary(exif: bytes) -> bool:
    """Whether its first directory, which has the orientation, is quickly read."""
    start = len(_EXIF)
    if not exif.startswith((_EXIF + b"II*\0", _EXIF + b"MM\0*")):
        return False
    order: Literal["little", "big"] = "little" if exif[start : start + 1] == b"I" else "big"
    start += int.from_bytes(exif[start + 4 : start + 8], order)
    return int.from_bytes(exif[start : start + 2], order) <= _MOST_TAGS


def _header(
    frame: tuple[int, int, int, bool] | None, *, num_in_scan: int, exif: bytes
) -> JpegHeader | None:
    if frame is None:
        return None
    height, width, num_colours, is_progressive = frame
    if not height or not width or num_colours not in (1, 3, 4):
        return None
    is_last = is_progressive or num_in_scan != num_colours
    return JpegHeader(height, width, num_colours, is_last, exif)
