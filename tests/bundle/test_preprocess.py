import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bundle.preprocess import (
    DATASET_FORMATS,
    Preprocess,
    UndecodableImage,
    UnsupportedImage,
    decode_image,
    pad_batch,
    prepare,
    read_header,
    resized_size,
)

Encode = Callable[..., bytes]
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
SIDES = st.integers(min_value=1, max_value=70_000)


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


# decoding


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


# refusals


def test_nothing_is_no_image() -> None:
    with pytest.raises(UndecodableImage, match="0 bytes"):
        decode_image(b"")


@pytest.mark.parametrize(
    ("image_format", "name"),
    [
        ("GIF", "GIF"),
        ("TIFF", "TIFF"),
        ("BMP", "BMP"),
        ("PPM", "a PNM image"),
        ("ICO", "an icon"),
        ("JPEG2000", "JPEG 2000"),
        ("EPS", "PostScript"),
        ("PDF", "PDF"),
        ("AVIF", "AVIF"),
    ],
)
def test_other_formats_are_refused_by_content_and_name(
    encode: Encode, image_format: str, name: str
) -> None:
    data = encode(Image.fromarray(PIXELS).resize((16, 16)), image_format)

    with pytest.raises(UnsupportedImage, match=f"a JPEG, PNG or WebP image, got {name}.*; conv"):
        decode_image(data)


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_only_its_end_marker_is_decoded(
    encode: Encode, scene: np.ndarray, cut: int, progressive: bool
) -> None:
    data = encode(scene, "JPEG", progressive=progressive, comment=b"\xff\xd9 is no end here")

    np.testing.assert_array_equal(decode_image(data[:-cut]), decode_image(data))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", ["scene", "noise", "white"])
def test_a_jpeg_that_lacks_more_than_its_end_marker_is_refused(
    encode: Encode, scene: np.ndarray, progressive: bool, kind: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    pixels = {"scene": scene, "noise": noise, "white": np.full((40, 40, 3), 255, np.uint8)}[kind]
    data = encode(pixels, "JPEG", progressive=progressive, restart_marker_blocks=2)
    whole = decode_image(data)

    pieces = [data[:size] for size in range(100, len(data) - 2, 3)]

    assert [len(piece) for piece in pieces if not is_refused_or(whole, piece)] == []


def is_refused_or(pixels: np.ndarray, data: bytes) -> bool:
    """Whether an image is refused as truncated, or gives these pixels all the same."""
    try:
        return np.array_equal(decode_image(data), pixels)
    except UndecodableImage as error:
        return "the JPEG image is damaged" in str(error)


def test_a_jpeg_that_breaks_off_between_two_scans_is_refused(
    encode: Encode, scene: np.ndarray
) -> None:
    data = encode(scene, "JPEG", progressive=True)
    last_scan = data.rindex(b"\xff\xda")

    with pytest.raises(UndecodableImage, match="truncated"):
        decode_image(data[:last_scan])


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8", b"<svg/>", b"RIFF\0\0\0\0WAVE", b"\0"])
def test_what_is_no_image_is_refused_by_content(data: bytes) -> None:
    with pytest.raises(UnsupportedImage):
        decode_image(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused(encode: Encode, image_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(noise, image_format)

    with pytest.raises(UndecodableImage, match=f"{image_format} image is damaged"):
        decode_image(data[: max(12, int(len(data) * share))])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@given(st.data())
def test_damage_gives_pixels_or_a_refusal_and_nothing_else(
    encode: Encode, image_format: str, data: st.DataObject
) -> None:
    content = bytearray(encode(PIXELS, image_format, exif=exif_of(6)))
    positions = st.integers(min_value=12, max_value=len(content) - 1)
    for position in data.draw(st.lists(positions, min_size=1, max_size=8)):
        content[position] = data.draw(st.integers(min_value=0, max_value=255))

    try:
        decoded = decode_image(bytes(content), max_pixels=1_000_000)
    except UndecodableImage:
        return

    assert decoded.ndim == 3


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    data = png(13_000, 13_000, b"\0" * 1000, depth=8, colour=2)

    with pytest.raises(UndecodableImage, match="= 169,000,000; send a smaller image"):
        decode_image(data)


def test_a_webp_bomb_is_refused_from_its_header(encode: Encode) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    data = bytearray(encode(red, "WEBP", save_all=True, append_images=[blue]))
    data[24:30] = b"\xfe\x3f\x00\xfe\x3f\x00"  # canvas of 16383 x 16383

    with pytest.raises(UndecodableImage, match="268,402,689"):
        decode_image(bytes(data))


def test_the_pixel_limit_is_inclusive(encode: Encode) -> None:
    data = encode(Image.new("L", (10, 10)), "PNG")

    assert decode_image(data, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(UndecodableImage):
        decode_image(data, max_pixels=99)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_bomb_in_a_text_chunk_is_no_bomb(kind: bytes) -> None:
    inflated = zlib.compress(b"\0" * 50_000_000, 9)
    data = png(1, 1, b"\0\5", depth=8, colour=0, extra=[(kind, b"name\0\0" + inflated)])

    with pytest.raises(UndecodableImage):
        decode_image(data)


# geometry


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((427, 640), (800, 1199)),
        ((426, 640), (800, 1202)),
        ((500, 333), (1201, 800)),
        ((359, 640), (748, 1333)),
        ((100, 1000), (133, 1333)),
        ((612, 612), (800, 800)),
        ((1, 20_000), (1, 1333)),
    ],
)
def test_sizes_are_those_of_the_published_evaluation(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_size(*size, 800, 1333) == expected


@given(SIDES, SIDES)
def test_the_resized_image_fits_and_keeps_its_aspect(height: int, width: int) -> None:
    new_height, new_width = resized_size(height, width, 800, 1333)

    scale = min(1333 / max(height, width), 800 / min(height, width))
    assert 1 <= min(new_height, new_width) <= 800
    assert max(new_height, new_width) <= 1333
    assert abs(new_height - height * scale) <= 0.5 or new_height == 1
    assert abs(new_width - width * scale) <= 0.5 or new_width == 1


@given(SIDES, SIDES)
def test_resizing_commutes_with_transposing(height: int, width: int) -> None:
    assert resized_size(height, width, 800, 1333) == resized_size(width, height, 800, 1333)[::-1]


def test_pixels_are_interpolated_as_opencv_does(scene: np.ndarray) -> None:
    resized, geometry = prepare(scene, Preprocess(short_side=60, long_side=100))

    expected = cv2.resize(scene, (80, 60), interpolation=cv2.INTER_LINEAR)
    assert geometry.original == (96, 128)
    assert geometry.resized == (60, 80)
    assert np.abs(resized.astype(int) - expected).max() <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_an_image_is_resized_by_the_thread_that_asks() -> None:
    count = "len(os.listdir('/proc/self/task'))"
    script = f"""
import os, cv2, numpy
cv2.setNumThreads(4)
from bundle.preprocess import Preprocess, prepare
image = numpy.zeros((3000, 4000, 3), numpy.uint8)
before = {count}
prepare(image, Preprocess())
print({count} - before)
"""

    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert (outcome.stdout, outcome.returncode) == ("0\n", 0)


def test_an_image_of_the_right_size_is_untouched(scene: np.ndarray) -> None:
    resized, _ = prepare(scene, Preprocess(short_side=96, long_side=128))

    np.testing.assert_array_equal(resized, scene)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    st.integers(1, 50),
)
def test_padding_keeps_every_image_and_marks_the_rest(
    sizes: list[tuple[int, int]], min_side: int
) -> None:
    images = [np.full((h, w, 3), 7, np.uint8) for h, w in sizes]

    batch, padding_mask = pad_batch(images, min_side)

    assert batch.shape[1:3] == tuple(max(min_side, *side, 1) for side in zip(*sizes, strict=True))
    assert padding_mask.shape == batch.shape[:3]
    np.testing.assert_array_equal(batch[..., 0] == 7, ~padding_mask)
    for (h, w), mask in zip(sizes, padding_mask, strict=True):
        assert not mask[:h, :w].any()
        assert (~mask).sum() == h * w


def test_one_large_image_is_not_padded() -> None:
    _, padding_mask = pad_batch([np.zeros((50, 60, 3), np.uint8)], min_side=32)

    assert padding_mask.shape == (1, 50, 60)
    assert not padding_mask.any()


def test_a_smaller_image_is_padded_to_the_smallest_side() -> None:
    batch, padding_mask = pad_batch([np.zeros((5, 60, 3), np.uint8)], min_side=32)

    assert batch.shape == (1, 32, 60, 3)
    assert padding_mask.sum() == (32 - 5) * 60


@pytest.mark.parametrize("field", ["short_side", "long_side", "min_side"])
def test_sides_are_positive(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Preprocess(**{field: 0})
