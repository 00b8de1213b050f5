"""The headers of ordinary JPEG files, read without Pillow, beside what Pillow reads."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.preprocess import read_header, read_jpeg_header
from tests.bundle.image_files import PIXELS, Encode, exif_of

LONG_EXIF = Image.Exif()
LONG_EXIF[0x010E] = "a description" * 1000
LONG_EXIF[0x0112] = 6
MANY_TAGS = Image.Exif()
MANY_TAGS.update(dict.fromkeys(range(0x0200, 0x0300), 1))


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"progressive": True}, {"exif": exif_of(6)}, {"exif": LONG_EXIF.tobytes()}),
        *({"icc_profile": b"p" * 70_000}, {"comment": b"c" * 300}, {"subsampling": 0}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_header_of_an_ordinary_jpeg_is_what_pillow_reads(
    encode: Encode, mode: str, options: dict[str, Any]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    data = encode(Image.fromarray(noise).convert(mode), "JPEG", **options)

    header = read_jpeg_header(data)

    assert header == read_header(data)
    assert header is not None
    assert header.decoding_bytes == read_header(data).decoding_bytes


def test_what_is_no_ordinary_jpeg_is_left_to_pillow(encode: Encode) -> None:
    jpeg = encode(PIXELS, "JPEG", exif=exif_of(6))
    exif = jpeg[jpeg.index(b"\xff\xe1") :][
        : 2 + int.from_bytes(jpeg[jpeg.index(b"\xff\xe1") + 2 :][:2])
    ]
    frame = jpeg.index(b"\xff\xc0")
    others = [
        b"",
        encode(PIXELS, "PNG"),
        encode(PIXELS, "JPEG", exif=MANY_TAGS.tobytes()),
        jpeg.replace(exif, exif + exif),  # which of them counts?
        jpeg.replace(b"MM\0*", b"MM\0+"),
        jpeg.replace(b"Exif\0\0", b"Exif\0\1"),
        jpeg[:frame] + b"\xff\xc9" + jpeg[frame + 2 :],  # arithmetic coding
        jpeg[:frame] + b"\xff\xff" + jpeg[frame + 1 :],  # a filling byte
        jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :],  # 12 bits per sample
        jpeg[: frame + 5] + b"\0\0" + jpeg[frame + 7 :],  # its height after its pixels
        jpeg[: frame + 9] + b"\2" + jpeg[frame + 10 :],  # two colours
        jpeg[:frame] + jpeg[frame:].replace(b"\xff\xda", b"\xff\xd9"),
    ]

    assert [read_jpeg_header(data) for data in others] == [None] * len(others)
    assert read_jpeg_header(jpeg, max_pixels=34) is None
    whole = read_jpeg_header(jpeg)
    for length in range(jpeg.index(b"\xff\xda")):
        assert read_jpeg_header(jpeg[:length]) is None
    assert whole == read_header(jpeg)
