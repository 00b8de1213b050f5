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


def jpeg_in_scans(
    pixels: Image.Image,
    sampling: Sequence[tuple[int, int]] = ((1, 1), (1, 1), (1, 1)),
    *,
    progressive: bool = False,
    without: int | None = None,
) -> bytes:
    """A JPEG that has its three colours one after another.

    `sampling` is the density of the samples of each, across and down. `without` is the number of
    one, from 1, that is only described.
    """
    most_across, most_down = (max(factors) for factors in zip(*sampling, strict=True))
    colours, scans = b"", b""
    start = b"\xff\xc2" if progressive else b"\xff\xc0"
    for number, (across, down) in enumerate(sampling, start=1):
        channel = pixels.convert("YCbCr").getchannel(number - 1)
        size = -(-channel.width * across // most_across), -(-channel.height * down // most_down)
        buffer = io.BytesIO()
        channel.resize(size).save(buffer, "JPEG", quality=90, progressive=progressive)
        plane = buffer.getvalue()
        frame = plane.index(start)
        colours += bytes([number, across << 4 | down, 0])
        if number != without:
            scan = b"\xff\xda\0\x08\1"
            scans += plane[frame + 13 : -2].replace(scan + b"\1", scan + bytes([number]))
    size_bytes = struct.pack(">BHHB", 8, pixels.height, pixels.width, len(sampling))
    return plane[:frame] + start + b"\0\x11" + size_bytes + colours + scans + b"\xff\xd9"


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    """A lossless JPEG of grey pixels (H, W) uint8, each predicted from the one to its left."""
    bits = ""
    for y, row in enumerate(pixels.astype(int).tolist()):
        before = pixels[y - 1, 0].item() if y else 128
        for value in row:
            difference, before = value - before, value
            length = abs(difference).bit_length()
            low = difference if difference >= 0 else difference + (1 << length) - 1
            bits += f"{length:05b}" + (f"{low:0{length}b}" if length else "")
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    height, width = pixels.shape
    frame = b"\xff\xc3\0\x0b" + struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    codes = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])  # one of five bits for each length
    table = b"\xff\xc4" + struct.pack(">H", 2 + len(codes)) + codes
    return b"\xff\xd8" + frame + table + b"\xff\xda\0\x08\1\1\0\1\0\0" + data + b"\xff\xd9"


def jpeg_with_frame(data: bytes, *, marker: int = 0xC0, precision: int = 8, height: int) -> bytes:
    """A baseline JPEG whose frame header says something else."""
    start = data.index(b"\xff\xc0")
    length = data[start + 2 : start + 4]
    header = struct.pack(">BB2sBH", 0xFF, marker, length, precision, height)
    return data[:start] + header + data[start + 7 :]
