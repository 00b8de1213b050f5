"""PNG files whose data ends between two rows, of every kind of colour, interlaced or not."""

import struct
import zlib

import numpy as np
import pytest

from bundle.preprocess import UndecodableImage, decode_image
from tests.bundle.image_files import png_chunks

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
STEPS = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2)]  # fmt: skip


def rows_of(width: int, height: int, bits: int, *, is_interlaced: bool) -> list[bytes]:
    """Random rows with their filter bytes."""
    rng = np.random.default_rng(0)
    passes = STEPS if is_interlaced else [(0, 0, 1, 1)]
    sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in passes]
    lengths = [-(-columns * bits // 8) for columns, rows in sizes if columns for _ in range(rows)]
    return [b"\0" + rng.integers(0, 256, length, np.uint8).tobytes() for length in lengths]


def png_of(width: int, height: int, rows: list[bytes], kind: tuple[int, int, bool]) -> bytes:
    depth, colour, is_interlaced = kind
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, is_interlaced)
    palette = [(b"PLTE", bytes(768))] if colour == 3 else []
    data = zlib.compress(b"".join(rows))
    return png_chunks((b"IHDR", header), *palette, (b"IDAT", data), (b"IEND", b""))


@pytest.mark.parametrize(("width", "height"), [(9, 8), (9, 1), (1, 9), (5, 3)])
@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize(
    ("depth", "colour"), [(1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (4, 3), (8, 3), (8, 4), (8, 6)]
)
def test_a_png_that_lacks_whole_rows_is_refused(
    width: int, height: int, *, depth: int, colour: int, is_interlaced: bool
) -> None:
    kind = depth, colour, is_interlaced
    rows = rows_of(width, height, depth * CHANNELS[colour], is_interlaced=is_interlaced)

    for number in range(1, len(rows)):
        with pytest.raises(UndecodableImage, match="PNG image is damaged"):
            decode_image(png_of(width, height, rows[:number], kind))
    assert decode_image(png_of(width, height, rows, kind)).shape == (height, width, 3)


@pytest.mark.parametrize("is_interlaced", [False, True])
def test_a_png_may_end_in_black(is_interlaced: bool) -> None:
    rows = [bytes(len(row)) for row in rows_of(9, 8, 24, is_interlaced=is_interlaced)]

    assert not decode_image(png_of(9, 8, rows, (8, 2, is_interlaced))).any()
