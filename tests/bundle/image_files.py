"""Image files, written byte by byte where a library would not write them."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

Encode = Callable[..., bytes]
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        checksum = zlib.crc32(kind + data)
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    return content


def png(
    width: int,
    height: int,
    rows: bytes,
    *,
    depth: int,
    colour: int,
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of raw rows with filter bytes; colour 0 grey, 2 RGB, 3 palette, 4 LA, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png_chunks((b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def jpeg_of_quarter_height_chroma() -> bytes:
    """8 x 32 pixels in 4:4:1, made of 32 x 8 in 4:1:1, which has the same blocks side by side."""
    buffer = io.BytesIO()
    wide = Image.fromarray(PIXELS).resize((32, 8))
    wide.save(buffer, "JPEG", quality=90, subsampling="4:1:1")
    data = buffer.getvalue()
    start = data.index(b"\xff\xc0") + 5  # of the size, the number of colours, and the first one
    frame = struct.pack(">HHBBB", 32, 8, 3, 1, 0x14)
    return data[:start] + frame + data[start + 7 :]


def jpeg_in_scans(pixels: Image.Image) -> bytes:
    """A baseline JPEG that has its three colours one after another."""
    planes = []
    for channel in pixels.convert("YCbCr").split():
        buffer = io.BytesIO()
        channel.save(buffer, "JPEG", quality=90)
        planes.append(buffer.getvalue())
    frame, scan = planes[0].index(b"\xff\xc0"), planes[0].index(b"\xff\xda")
    colours = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    header = b"\xff\xc0\0\x11" + planes[0][frame + 4 : frame + 9] + b"\3" + colours
    content = planes[0][:frame] + header + planes[0][frame + 13 : scan]
    for number, plane in enumerate(planes, start=1):
        content += b"\xff\xda\0\x08\1" + bytes([number]) + plane[scan + 6 : -2]
    return content + b"\xff\xd9"


def jpeg_with_frame(data: bytes, *, marker: int = 0xC0, precision: int = 8, height: int) -> bytes:
    """A baseline JPEG whose frame header says something else."""
    start = data.index(b"\xff\xc0")
    length = data[start + 2 : start + 4]
    header = struct.pack(">BB2sBH", 0xFF, marker, length, precision, height)
    return data[:start] + header + data[start + 7 :]
