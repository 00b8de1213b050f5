import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from bundle.preprocess import (
    DATASET_FORMATS,
    Preprocess,
    UndecodableImage,
    decode_image,
    prepare,
    read_header,
)
from tests.bundle.image_files import (
    PIXELS,
    Encode,
    exif_of,
    jpeg_in_scans,
    jpeg_of_quarter_height_chroma,
    png,
    png_chunks,
)


def decoded_or_none(data: bytes) -> list[Any] | None:
    try:
        return decode_image(data, max_pixels=1_000_000).tolist()
    except UndecodableImage:
        return None


def pixels_of_pillow(data: bytes) -> list[Any] | None:
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
        if image.width * image.height > 1_000_000:
            return None
        return np.asarray(image.convert("RGB")).tolist()
    except (OSError, SyntaxError, ValueError):
        return None


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_a_lossless_image_decodes_to_its_pixels(encode: Encode, image_format: str) -> None:
    data = encode(PIXELS, image_format, lossless=True)

    decoded = decode_image(data)

    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, PIXELS)


def test_a_jpeg_decodes_as_opencv_decodes_it(jpeg_bytes: bytes) -> None:
    expected = cv2.imdecode(np.frombuffer(jpeg_bytes, np.uint8), cv2.IMREAD_COLOR_RGB)

    decoded = decode_image(jpeg_bytes)

    assert np.abs(decoded.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restart", [0, 2])
def test_every_kind_of_jpeg_decodes_as_pillow_decodes_it(
    encode: Encode, mode: str, subsampling: str, progressive: bool, restart: int
) -> None:
    image = Image.fromarray(PIXELS).resize((61, 47)).convert(mode)
    options = {"subsampling": subsampling, "restart_marker_blocks": restart}
    data = encode(image, "JPEG", quality=80, progressive=progressive, **options)

    decoded = decode_image(data)

    np.testing.assert_array_equal(decoded, Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    "data", [jpeg_of_quarter_height_chroma(), jpeg_in_scans(Image.fromarray(PIXELS))]
)
def test_a_rare_kind_of_jpeg_decodes_as_pillow_decodes_it(data: bytes) -> None:
    decoded = decode_image(data)

    np.testing.assert_array_equal(decoded, Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("changes", [1, 3])
def test_a_damaged_jpeg_is_refused_or_decodes_as_pillow_decodes_it(
    encode: Encode, changes: int
) -> None:
    good = encode(PIXELS, "JPEG", quality=80, restart_marker_blocks=3)
    rng = np.random.default_rng(changes)
    damaged = []
    for _ in range(300):
        data = np.frombuffer(good, np.uint8).copy()
        data[rng.integers(3, len(good) - 2, changes)] = rng.integers(0, 256, changes)
        damaged.append(data.tobytes())

    outcomes = [(decoded_or_none(data), pixels_of_pillow(data)) for data in damaged]

    assert all(decoded in (None, expected) for decoded, expected in outcomes)
    num_refused = sum(decoded is None for decoded, _ in outcomes)
    assert 10 < num_refused < 290


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encode: Encode, image_format: str, orientation: int) -> None:
    displayed = np.full((40, 24, 3), 10, np.uint8)
    displayed[:8, :8], displayed[:8, 16:], displayed[32:, :8] = (
        (250, 0, 0),
        (0, 250, 0),
        (0, 0, 250),
    )
    stored = {
        1: displayed,
        2: displayed[:, ::-1],
        3: displayed[::-1, ::-1],
        4: displayed[::-1],
        5: displayed.transpose(1, 0, 2),
        6: np.rot90(displayed),
        7: displayed[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(displayed, -1),
    }[orientation]
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    data = encode(
        np.ascontiguousarray(stored),
        image_format,
        exif=exif_of(orientation),
        **options.get(image_format, {}),
    )

    decoded = decode_image(data)

    assert decoded.shape == displayed.shape
    assert np.abs(decoded.astype(int) - displayed).max() <= 16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
def test_header_and_decoder_agree_wherever_a_png_keeps_its_exif(
    encode: Encode, orientation: int, place: str
) -> None:
    data = encode(PIXELS[:, :2], "PNG")
    position = data.index(b"IEND" if place == "after the pixels" else b"IDAT") - 4
    exif = exif_of(orientation)
    chunk = png_chunks((b"eXIf", exif.removeprefix(b"Exif\0\0")))[8:]  # without the signature
    data = data[:position] + chunk + data[position:]

    header = read_header(data)

    assert header.orientation == orientation
    assert header.size == decode_image(data).shape[:2]
    assert header.stored_size == PIXELS[:, :2].shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_of_a_data_set_is_turned_as_displayed(encode: Encode, orientation: int) -> None:
    stored = np.full((40, 24, 3), 10, np.uint8)
    stored[:8, :8] = 250
    data = encode(stored, "TIFF", tiffinfo={0x0112: orientation})
    jpeg = encode(stored, "JPEG", quality=100, subsampling=0, exif=exif_of(orientation))

    decoded = decode_image(data, formats=DATASET_FORMATS)

    np.testing.assert_allclose(decoded, decode_image(jpeg), atol=16)
    assert read_header(data, DATASET_FORMATS) == read_header(jpeg)


def test_a_bmp_of_a_data_set_decodes_to_its_pixels(encode: Encode) -> None:
    data = encode(PIXELS, "BMP")

    np.testing.assert_array_equal(decode_image(data, formats=DATASET_FORMATS), PIXELS)
    assert read_header(data, DATASET_FORMATS).size == PIXELS.shape[:2]


@pytest.mark.parametrize("exif", [exif_of(9), exif_of(0), b"Exif\0\0", b"Exif\0\0garbage"])
def test_an_unknown_or_damaged_orientation_is_ignored(encode: Encode, exif: bytes) -> None:
    data = encode(PIXELS, "PNG", exif=exif)

    np.testing.assert_array_equal(decode_image(data), PIXELS)
    assert read_header(data).size == PIXELS.shape[:2]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(encode: Encode, image_format: str) -> None:
    data = encode(np.full((8, 8), 77, np.uint8), image_format)

    np.testing.assert_array_equal(decode_image(data), np.full((8, 8, 3), 77))


def test_one_bit_becomes_black_and_white(encode: Encode) -> None:
    data = encode(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), "PNG")

    np.testing.assert_array_equal(decode_image(data), [[[0] * 3, [255] * 3]])


def test_a_palette_is_looked_up() -> None:
    palette = (b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    data = png(2, 1, b"\0\0\1", depth=8, colour=3, extra=[palette])

    np.testing.assert_array_equal(decode_image(data), [[[10, 20, 30], [40, 50, 60]]])


def test_transparent_palette_entries_are_laid_over_white() -> None:
    palette = (b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90]))
    transparency = (b"tRNS", bytes([0, 255, 127]))
    data = png(3, 1, b"\0\0\1\2", depth=8, colour=3, extra=[palette, transparency])

    half = [163, 168, 173]  # value * 127/255 + 255 * 128/255
    np.testing.assert_array_equal(decode_image(data), [[[255] * 3, [40, 50, 60], half]])


@pytest.mark.parametrize("colour", ["LA", "RGBA"])
def test_alpha_is_laid_over_white(encode: Encode, colour: str) -> None:
    image = Image.new("RGBA", (3, 1), (80, 80, 80, 255))
    image.putpixel((0, 0), (80, 80, 80, 0))
    image.putpixel((1, 0), (80, 80, 80, 51))
    data = encode(image.convert(colour), "PNG")

    np.testing.assert_array_equal(decode_image(data), [[[255] * 3, [220] * 3, [80] * 3]])


def test_webp_alpha_is_laid_over_white(encode: Encode) -> None:
    data = encode(Image.new("RGBA", (4, 4), (80, 80, 80, 51)), "WEBP", lossless=True)

    np.testing.assert_array_equal(decode_image(data), np.full((4, 4, 3), 220))


def test_a_colour_key_is_laid_over_white() -> None:
    key = (b"tRNS", struct.pack(">HHH", 1, 2, 3))
    data = png(2, 1, bytes([0, 1, 2, 3, 4, 5, 6]), depth=8, colour=2, extra=[key])

    np.testing.assert_array_equal(decode_image(data), [[[255] * 3, [4, 5, 6]]])


@pytest.mark.parametrize("inverted_by", ["Adobe marker", "no marker"])
def test_cmyk_jpegs_are_stored_inverted(encode: Encode, inverted_by: str) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = encode(cyan, "JPEG", quality=100)
    marker = data.index(b"\xff\xee")
    if inverted_by == "no marker":
        data = data[:marker] + data[marker + 2 + int.from_bytes(data[marker + 2 : marker + 4]) :]

    decoded = decode_image(data)

    assert np.abs(decoded.astype(int) - (0, 255, 255)).max() <= 4


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    values = [0x0000, 0x00FF, 0x0100, 0x7FFF, 0xFFFF]
    data = png(5, 1, b"\0" + struct.pack(">5H", *values), depth=16, colour=0)

    np.testing.assert_array_equal(decode_image(data)[0, :, 0], [0, 0, 1, 0x7F, 0xFF])


def test_a_sixteen_bit_grey_colour_key_is_exact() -> None:
    key = (b"tRNS", struct.pack(">H", 0x1234))
    rows = b"\0" + struct.pack(">3H", 0x1234, 0x1235, 0xFFFF)
    data = png(3, 1, rows, depth=16, colour=0, extra=[key])

    np.testing.assert_array_equal(decode_image(data)[0, :, 0], [255, 0x12, 0xFF])


@pytest.mark.parametrize(
    ("colour", "values", "expected"),
    [
        (2, [0x10FF, 0x2000, 0xFFFF], [0x10, 0x20, 0xFF]),
        (4, [0x7000, 0xFFFF], [0x70, 0x70, 0x70]),
        (6, [0x5000, 0x6000, 0x7000, 0xFFFF], [0x50, 0x60, 0x70]),
        (6, [0x5000, 0x6000, 0x7000, 0x0000], [255, 255, 255]),
    ],
)
def test_sixteen_bit_colour_keeps_its_high_byte(
    colour: int, values: list[int], expected: list[int]
) -> None:
    rows = b"\0" + struct.pack(f">{len(values)}H", *values)
    data = png(1, 1, rows, depth=16, colour=colour)

    np.testing.assert_array_equal(decode_image(data), [[expected]])


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("colour", [0, 2, 4, 6])
@pytest.mark.parametrize("extra", [[], [(b"sBIT", b"\x0c" * 4)]], ids=["", "sBIT"])
def test_samples_of_a_sensor_give_what_the_image_in_eight_bits_gives(
    colour: int, bits: int, extra: list[tuple[bytes, bytes]]
) -> None:
    in_eight_bits = np.arange(256, dtype=np.uint16).reshape(16, 16, 1)
    num_colours, has_alpha = {0: (1, 0), 2: (3, 0), 4: (1, 1), 6: (3, 1)}[colour]
    opaque = np.full((16, 16, has_alpha), (1 << bits) - 1, np.uint16)
    samples = np.concatenate([in_eight_bits.repeat(num_colours, 2) << (bits - 8), opaque], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [(kind, content[: samples.shape[2]]) for kind, content in extra]

    decoded = decode_image(png(16, 16, rows, depth=16, colour=colour, extra=chunks))

    np.testing.assert_array_equal(decoded, in_eight_bits.repeat(3, 2))


def test_a_colour_key_says_nothing_of_how_bright_the_image_is() -> None:
    key = (b"tRNS", struct.pack(">H", 0xFFFF))
    rows = b"\0" + struct.pack(">2H", 0xFFFF, 0x0FF0)

    data = png(2, 1, rows, depth=16, colour=0, extra=[key])

    np.testing.assert_array_equal(decode_image(data)[0, :, 0], [255, 0xFF])


def test_a_colour_key_among_samples_of_a_sensor_is_laid_over_white() -> None:
    key = (b"tRNS", struct.pack(">3H", 0x0100, 0x0200, 0x0300))
    rows = b"\0" + struct.pack(">6H", 0x0100, 0x0200, 0x0300, 0x0FF0, 0x0200, 0x0300)

    data = png(2, 1, rows, depth=16, colour=2, extra=[key])

    np.testing.assert_array_equal(decode_image(data), [[[255, 255, 255], [255, 0x20, 0x30]]])


def test_a_black_image_in_sixteen_bits_stays_black() -> None:
    data = png(2, 1, b"\0" + struct.pack(">6H", *[0] * 6), depth=16, colour=2)

    np.testing.assert_array_equal(decode_image(data), np.zeros((1, 2, 3)))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(encode: Encode, image_format: str) -> None:
    red, blue = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    data = encode(red, image_format, save_all=True, append_images=[blue], lossless=True)

    np.testing.assert_array_equal(decode_image(data), np.full((4, 6, 3), (255, 0, 0)))


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_one_pixel_wide_images_decode_and_resize(encode: Encode, size: tuple[int, int]) -> None:
    image = decode_image(encode(Image.new("RGB", size, (9, 8, 7)), "PNG"))

    resized, geometry = prepare(image, Preprocess())

    assert geometry.original == size[::-1]
    assert resized.shape == (*geometry.resized, 3)
    assert min(geometry.resized) >= 1


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_bmp_whose_alpha_was_never_set_is_opaque(alpha: int) -> None:
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0)
    pixels = bytes([30, 20, 10, alpha]) * 2
    start = b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122)
    data = start + header + masks.ljust(68, b"\0") + pixels

    decoded = decode_image(data, formats=DATASET_FORMATS)

    np.testing.assert_array_equal(decoded, [[[10, 20, 30]] * 2])
