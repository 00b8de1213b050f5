"""TIFF files written byte by byte, most of them of 16 bits per sample as of scientific cameras."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from bundle.preprocess import DATASET_FORMATS, UndecodableImage, decode_image, read_header

RGB, WHITE_IS_ZERO, BLACK_IS_ZERO = 2, 0, 1
RAW, DEFLATE = 1, 8
TURNED_LEFT = 8  # an orientation


def tiff(
    samples: np.ndarray,
    *,
    order: str = "<",
    colours: int = RGB,
    compression: int = RAW,
    orientation: int = 1,
    in_planes: bool = False,
    num_missing: int = 0,
) -> bytes:
    """A TIFF of samples (H, W, N) uint8 or uint16, in two strips or in two for each plane.

    Args:
        num_missing: of the last strips.
    """
    height, width, count = samples.shape
    bits = 8 * samples.itemsize
    planes = np.split(samples, count, axis=2) if in_planes else [samples]
    parts = [part for plane in planes for part in np.split(plane, 2)]
    strips = [part.astype(f"{order}u{samples.itemsize}").tobytes() for part in parts]
    strips = strips[: len(strips) - num_missing]
    strips = [zlib.compress(strip) if compression == DEFLATE else strip for strip in strips]
    pixels = b"".join(strips) + b"\0" * (sum(map(len, strips)) % 2)
    starts = [8 + sum(map(len, strips[:n])) for n in range(len(strips))]
    tags = {
        256: ("H", [width]), 257: ("H", [height]), 258: ("H", [bits] * count),
        259: ("H", [compression]), 262: ("H", [colours]), 273: ("I", starts),
        274: ("H", [orientation]), 277: ("H", [count]), 278: ("H", [height // 2]),
        279: ("I", [len(strip) for strip in strips]), 284: ("H", [2 if in_planes else 1]),
        **({338: ("H", [2])} if count == 4 else {}),
    }  # fmt: skip
    directory = 8 + len(pixels)
    entries, tail = b"", b""
    for tag, (kind, values) in tags.items():
        content = struct.pack(f"{order}{len(values)}{kind}", *values).ljust(4, b"\0")
        if len(content) > 4:
            place = directory + 2 + 12 * len(tags) + 4 + len(tail)
            content, tail = struct.pack(f"{order}I", place), tail + content
        number = {"H": 3, "I": 4}[kind]
        entries += struct.pack(f"{order}HHI", tag, number, len(values)) + content
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", directory)
    number_of = struct.pack(f"{order}H", len(tags))
    return start + pixels + number_of + entries + bytes(4) + tail


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [RAW, DEFLATE])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_samples_of_a_sensor_give_what_the_image_in_eight_bits_gives(
    order: str, compression: int, bits: int, count: int
) -> None:
    in_eight_bits = np.arange(256, dtype=np.uint16).reshape(16, 16, 1)
    samples = in_eight_bits.repeat(count, 2) << (bits - 8)
    samples[..., 3:] = (1 << bits) - 1
    data = tiff(samples, order=order, compression=compression, colours=RGB if count > 1 else 1)

    decoded = decode_image(data, formats=DATASET_FORMATS)

    np.testing.assert_array_equal(decoded, in_eight_bits.repeat(3, 2))


def test_the_samples_of_a_sensor_are_turned_as_displayed() -> None:
    samples = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) << 7
    data = tiff(samples, orientation=TURNED_LEFT)

    decoded = decode_image(data, formats=DATASET_FORMATS)

    np.testing.assert_array_equal(decoded, np.rot90(samples >> 4))


@pytest.mark.parametrize("bits", [12, 16])
def test_grey_whose_zero_is_white_is_read_so(bits: int) -> None:
    samples = np.array([[[0], [1 << (bits - 1)], [(1 << bits) - 1]]] * 2, np.uint16)
    data = tiff(samples, colours=WHITE_IS_ZERO)

    decoded = decode_image(data, formats=DATASET_FORMATS)

    np.testing.assert_array_equal(decoded[0, :, 0], [255, 127, 0])


@pytest.mark.parametrize("in_planes", [False, True])
def test_a_file_that_lacks_a_strip_is_refused(in_planes: bool) -> None:
    samples = np.full((4, 5, 3), 200, np.uint8)

    whole = decode_image(tiff(samples, in_planes=in_planes), formats=DATASET_FORMATS)
    with pytest.raises(UndecodableImage, match="damaged: a part of its pixels is missing"):
        decode_image(tiff(samples, in_planes=in_planes, num_missing=1), formats=DATASET_FORMATS)

    np.testing.assert_array_equal(whole, samples)


@pytest.mark.parametrize("read", [decode_image, read_header])
@pytest.mark.parametrize("compression", [RAW, DEFLATE])
def test_planes_of_sixteen_bits_are_refused(read: Callable[..., object], compression: int) -> None:
    data = tiff(np.zeros((2, 2, 3), np.uint16), in_planes=True, compression=compression)

    with pytest.raises(UndecodableImage, match="plane by plane; save it as PNG"):
        read(data, formats=DATASET_FORMATS)
