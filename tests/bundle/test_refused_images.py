import io
import re
import struct
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bundle.preprocess import (
    DATASET_FORMATS,
    UndecodableImage,
    UnsupportedImage,
    decode_image,
    read_header,
)
from tests.bundle.image_files import (
    PIXELS,
    Encode,
    exif_of,
    jpeg_in_scans,
    jpeg_of_quarter_height_chroma,
    jpeg_with_frame,
    lossless_jpeg,
    png,
    png_chunks,
)


@pytest.mark.parametrize("read", [decode_image, read_header])
def test_nothing_is_no_image(read: Callable[[bytes], object]) -> None:
    with pytest.raises(UndecodableImage, match="0 bytes"):
        read(b"")


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


@pytest.mark.parametrize("read", [decode_image, read_header])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_png_without_its_palette_is_damaged_and_not_grey(
    read: Callable[[bytes], object], depth: int
) -> None:
    rows = b"\0\1" * 8
    at_the_end = png(1, 8, rows, depth=depth, colour=3)[:-12] + png_chunks((b"PLTE", b"abc"))[8:]

    for data in (png(1, 8, rows, depth=depth, colour=3), at_the_end):
        with pytest.raises(UndecodableImage, match="it has no palette"):
            read(data)


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


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_with_a_hole_before_its_end_marker_is_refused(
    encode: Encode, mode: str, options: dict[str, Any]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise).convert(mode), "JPEG", **options)

    pieces = [data[:size] + b"\xff\xd9" for size in range(1000, len(data) - 100, 101)]

    assert [len(piece) for piece in pieces if not is_refused_or(noise, piece)] == []


NOISE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
# Kinds that TurboJPEG has no name for, so that it does not say what is missing.
UNNAMED = {
    "4:4:1": jpeg_of_quarter_height_chroma(),
    "grey in full": lossless_jpeg(NOISE[:40, :, 0]),
    "4:1:0": jpeg_in_scans(Image.fromarray(NOISE), ((4, 2), (1, 1), (1, 1))),
    "each its own": jpeg_in_scans(Image.fromarray(NOISE), ((1, 1), (2, 1), (1, 2))),
}


@pytest.mark.parametrize("kind", UNNAMED)
def test_a_hole_is_found_in_any_scan_of_a_jpeg_of_an_unusual_kind(kind: str) -> None:
    data = UNNAMED[kind]
    whole = decode_image(data)
    ends = [found.start() for found in re.finditer(rb"\xff[\xda\xd9]", data)]

    for start, end in pairwise(ends):
        with pytest.raises(UndecodableImage, match="a part of its pixels is missing"):
            decode_image(data[: (start + end) // 2] + data[end:])
        for share in np.linspace(0.2, 0.95, 6):
            piece = data[: start + int((end - start) * share)] + data[end:]
            assert is_refused_or(whole, piece)
            assert is_refused_or(whole, piece.removesuffix(b"\xff\xd9"))


@pytest.mark.parametrize("sampling", [((4, 2), (1, 1), (1, 1)), ((1, 1), (2, 1), (1, 2))])
def test_a_jpeg_with_unusually_sampled_colours_is_decoded(
    scene: np.ndarray, sampling: tuple[tuple[int, int], ...]
) -> None:
    soft = Image.fromarray(scene).resize((4, 3)).resize((128, 96))

    decoded = decode_image(jpeg_in_scans(soft, sampling))

    assert np.abs(decoded.astype(int) - np.asarray(soft)).mean() < 8


def test_a_lossless_jpeg_is_decoded_to_its_pixels() -> None:
    grey = NOISE[:40, :, 0]

    assert np.array_equal(decode_image(lossless_jpeg(grey)), np.dstack([grey] * 3))


def test_a_jpeg_whose_scans_are_misdescribed_is_decoded_unless_it_has_a_hole(
    encode: Encode,
) -> None:
    data = encode(NOISE, "JPEG", restart_marker_blocks=8)
    scan, hole = data.index(b"\xff\xda"), data.index(b"\xff\xd2")
    odd = data[: scan + 11] + b"\0\0\0" + data[scan + 14 :]

    np.testing.assert_array_equal(decode_image(odd), decode_image(data))
    with pytest.raises(UndecodableImage, match="a part of its pixels is missing"):
        decode_image(odd[: hole - 100] + odd[hole:])


def test_a_jpeg_with_spare_bytes_before_its_end_marker_is_decoded(
    encode: Encode, scene: np.ndarray
) -> None:
    data = encode(scene, "JPEG")

    np.testing.assert_array_equal(decode_image(data[:-2] + b"\0\0\xff\xd9"), decode_image(data))


def test_a_jpeg_that_breaks_off_between_two_scans_is_refused(
    encode: Encode, scene: np.ndarray
) -> None:
    data = encode(scene, "JPEG", progressive=True)
    last_scan = data.rindex(b"\xff\xda")

    with pytest.raises(UndecodableImage, match="truncated"):
        decode_image(data[:last_scan])


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8", b"<svg/>", b"RIFF\0\0\0\0WAVE", b"\0"])
def test_what_is_not_an_image_is_refused_by_content(data: bytes) -> None:
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


INFLATED = zlib.compress(b"\xff" * ((1 << 20) - 1), 9)  # of 1 kB; no text in UTF-8


@pytest.mark.parametrize(
    "remark",
    [
        (b"tEXt", b"name\0" + b"\xff" * 2000),
        (b"zTXt", b"name\0\0" + INFLATED),
        (b"zTXt", b"name\0\0" + INFLATED[:-4] + b"\0\0\0\0"),
        (b"zTXt", b"name\0\1"),
        (b"iTXt", b"name\0\1\0\0\0" + INFLATED),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + INFLATED),
        (b"iCCP", b"name\0\0" + INFLATED),
    ],
    ids=["text", "packed", "damaged", "unknown", "international", "xmp", "profile"],
)
def test_thousands_of_texts_in_a_png_cost_nothing(remark: tuple[bytes, bytes]) -> None:
    plain = png(5, 7, bytes(112), depth=8, colour=2)
    wordy = png(5, 7, bytes(112), depth=8, colour=2, extra=[remark] * 3000)
    before_s = time.process_time()

    assert np.array_equal(decode_image(wordy), decode_image(plain))
    assert read_header(wordy).size == (7, 5)
    assert time.process_time() - before_s < 1  # expanding them takes 7 s


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
def test_a_long_text_in_a_png_is_no_reason_to_refuse_it(kind: bytes) -> None:
    long = zlib.compress(b"\0" * 50_000_000, 9)
    after = png_chunks((kind, b"name\0\0" + long))[8:]
    data = png(1, 1, b"\0\5", depth=8, colour=0, extra=[(kind, b"name\0\0" + long)])

    assert decode_image(data + after).tolist() == [[[5, 5, 5]]]


def test_a_png_that_ends_in_a_text_is_refused() -> None:
    data = png_chunks((b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)), (b"tEXt", b"a\0b"))

    for size in range(33, len(data)):
        with pytest.raises(UndecodableImage):
            decode_image(data[:size])


def jpeg(*, before: bytes = b"", behind: bytes = b"", cut: int = 2) -> bytes:
    """A JPEG with bytes behind its start marker and behind its pixels, without its last bytes."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:2] + before + data[2 : len(data) - cut] + behind


EMPTY_SEGMENT = b"\xff\xfe\x00\x02"
LIKE_SCANS = b"\xff\xfe\x01\x92" + b"\xff\xda" * 200  # the content of one segment


@pytest.mark.parametrize(
    "data",
    [
        jpeg(before=EMPTY_SEGMENT * 10_000),
        jpeg(before=b"\xff" * 10_000),
        jpeg(before=EMPTY_SEGMENT + b"\0" * 10_000),
        jpeg(behind=EMPTY_SEGMENT * 10_001, cut=20),
        jpeg(behind=LIKE_SCANS + EMPTY_SEGMENT * 10_001),
        png(5, 7, bytes(112), depth=8, colour=2, extra=[(b"prIv", b"")] * 10_000),
        png(5, 7, bytes(112), depth=8, colour=2, extra=[(b"IDAT", b"")] * 10_000),
    ],
    ids=["segments", "fill", "junk", "truncated", "scans", "chunks", "pixels"],
)
def test_a_file_of_very_many_pieces_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableImage, match="far more pieces"):
        decode_image(data)


def test_a_file_of_many_pieces_is_decoded() -> None:
    segments = jpeg(before=EMPTY_SEGMENT * 2000, cut=0)
    chunks = png(5, 7, bytes(112), depth=8, colour=2, extra=[(b"prIv", b"")] * 2000)

    assert decode_image(segments).shape == (8, 8, 3)
    assert decode_image(chunks).shape == (7, 5, 3)


@pytest.mark.parametrize("read", [decode_image, read_header])
def test_a_jpeg_of_very_many_scans_is_refused(read: Callable[[bytes], object]) -> None:
    """Each takes 36 bytes, and as long as all pixels of the image."""
    data = jpeg(cut=0)
    last_scan = data[data.rindex(b"\xff\xda") : -2]

    assert read_header(jpeg(before=LIKE_SCANS, cut=0)).size == (8, 8)
    assert read_header(data[:-2] + last_scan * 90).size == (8, 8)
    with pytest.raises(UndecodableImage, match="at most 100 scans"):
        read(data[:-2] + last_scan * 100)


@pytest.mark.parametrize("read", [decode_image, read_header])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_samples_of_32_bits_are_refused(read: Callable[..., object], dtype: type) -> None:
    tiff = io.BytesIO()
    Image.fromarray(np.ones((4, 4), dtype)).save(tiff, "TIFF")

    with pytest.raises(UndecodableImage, match=r"TIFF image of 8 or 16 bits .* got 32 bits"):
        read(tiff.getvalue(), formats=DATASET_FORMATS)


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        ({"precision": 12}, "12 bits per sample"),
        ({"precision": 16, "marker": 0xC3}, "16 bits per sample"),
        ({"height": 0}, "its height after its pixels"),
        ({"marker": 0xF7}, "JPEG-LS"),
        ({"marker": 0xC5}, "a hierarchy of frames"),
        ({"marker": 0xCB}, "lossless arithmetic coding"),
        ({"marker": 0xC9}, "arithmetic coding"),
        ({"marker": 0xCA}, "arithmetic coding"),
    ],
)
def test_a_jpeg_of_a_rare_kind_is_named_instead_of_damaged(
    encode: Encode, frame: dict[str, int], name: str
) -> None:
    data = jpeg_with_frame(encode(PIXELS, "JPEG"), **{"height": 7, **frame})

    with pytest.raises(UndecodableImage, match=f"8 bits per sample, got one with {name}; save it"):
        decode_image(data)


def test_a_webp_that_breaks_off_is_told_how_much_is_missing(encode: Encode) -> None:
    data = encode(PIXELS, "WEBP")

    with pytest.raises(UndecodableImage, match=f"truncated to 60 of {len(data)} bytes"):
        decode_image(data[:60])
