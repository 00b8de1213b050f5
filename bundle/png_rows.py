"""Loads a PNG that has all of its rows. Where its data ends between two, Pillow says nothing."""

import os
import struct
import zlib
from operator import eq

from PIL import Image, ImageFile

from bundle.png_chunks import chunks

_HEADER = 16  # offset of its content
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the kind of colour
_WHOLE = ((0, 0, 1, 1),)
_PASSES = (  # of an interlaced image: x and y of the first pixel, and their steps
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_STEP_BYTES = 1 << 18  # expanded at a time
_LAST_ROWS = 2  # one of them ends the data, interlaced or not


def load_png(image: Image.Image, data: bytes) -> None:
    """Load the pixels of an opened PNG file.

    Raises:
        ValueError: rows are missing.
        As Pillow does on damaged data.
    """
    assert isinstance(image, ImageFile.ImageFile)
    starts = [(0, y) for y in range(max(0, image.height - _LAST_ROWS), image.height)]
    before: list[object] = []
    if image.tile:  # else there is nothing to decode, which Pillow notices
        ImageFile.ImageFile.load_prepare(image)  # of the class above, as PNG's works only once
        for start in starts:
            image.im.putpixel(start, _any_pixel(image))  # it stays where no row is decoded
        before = list(map(image.im.getpixel, starts))
    image.load()
    is_left = any(map(eq, before, map(image.im.getpixel, starts)))
    if (is_left or image.height == 1) and _lacks_rows(data):
        raise ValueError("a part of its pixels is missing")


def _any_pixel(image: Image.Image) -> int | tuple[int, ...]:
    values = tuple(os.urandom(len(image.getbands())))
    return values if len(values) > 1 else values[0]


def _lacks_rows(data: bytes) -> bool:
    """Whether the data of the pixels ends before the last row; all of it is expanded for that."""
    num_left = _num_expanded_bytes(data)
    expander = zlib.decompressobj()
    for chunk in chunks(data):
        packed = data[chunk.content] if chunk.kind == b"IDAT" else b""
        while packed and not expander.eof:
            num_left -= len(expander.decompress(packed, _STEP_BYTES))
            packed = expander.unconsumed_tail
            if num_left <= 0:
                return False
    return num_left - len(expander.flush()) > 0


def _num_expanded_bytes(data: bytes) -> int:
    """All rows, each with a byte for its filter.

    Layout of the header: https://www.w3.org/TR/png-3/#11IHDR.
    """
    width, height, depth, colour, *_, is_interlaced = struct.unpack_from(">IIBBBBB", data, _HEADER)
    num_bytes = 0
    for left, top, step_x, step_y in _PASSES if is_interlaced else _WHOLE:
        num_columns, num_rows = -((left - width) // step_x), -((top - height) // step_y)
        if num_columns > 0:
            num_bits = num_columns * depth * _CHANNELS.get(colour, 1)
            num_bytes += num_rows * (1 + -(-num_bits // 8))
    return num_bytes
