import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from bundle.faultless_jpeg import faultless_header, trial_jpegs
from bundle.preprocess import read_header
from tests.bundle.image_files import (
    PIXELS,
    Encode,
    exif_of,
    jpeg_in_scans,
    jpeg_of_quarter_height_chroma,
)


def decodes_in_full(data: bytes) -> bool:
    """Whether libjpeg finds nothing to warn of."""
    try:
        simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_whole_jpeg_has_its_header(encode: Encode, orientation: int) -> None:
    data = encode(PIXELS, "JPEG", exif=exif_of(orientation))

    assert faultless_header(data) == read_header(data)


def test_what_follows_the_image_does_not_matter(encode: Encode) -> None:
    data = encode(PIXELS, "JPEG") + b"a film of two seconds"

    assert faultless_header(data) == read_header(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_an_eighth_of_the_pixels_shows_every_fault_that_all_pixels_show(
    encode: Encode, options: dict[str, Any]
) -> None:
    data = encode(np.random.randint(0, 256, (64, 64, 3), np.uint8), "JPEG", **options)
    start = data.index(b"\xff\xda") + 20

    cut = [data[:place] + data[place + 50 :] for place in range(start, len(data) - 60, 47)]

    whole = [faultless_header(one) is not None for one in cut]
    assert whole == [decodes_in_full(one) for one in cut]
    assert whole.count(False) > 10


def test_a_jpeg_without_one_of_its_colours_has_none() -> None:
    soft = Image.fromarray(PIXELS).resize((64, 64))

    assert faultless_header(jpeg_in_scans(soft)) is not None
    assert faultless_header(jpeg_in_scans(soft, without=3)) is None


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM"])
def test_anything_else_has_none(data: bytes) -> None:
    assert faultless_header(data) is None


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_other_colours_have_none(encode: Encode, mode: str) -> None:
    data = encode(Image.fromarray(PIXELS).convert(mode), "JPEG", keep_rgb=True)

    assert faultless_header(data) is None


def test_a_jpeg_that_simplejpeg_has_no_name_for_has_none() -> None:
    assert faultless_header(jpeg_of_quarter_height_chroma()) is None


def test_an_image_that_is_too_large_has_none(encode: Encode) -> None:
    assert faultless_header(encode(PIXELS, "JPEG"), max_pixels=34) is None


def test_there_are_trial_images_in_colour_and_in_grey() -> None:
    images = [Image.open(io.BytesIO(data)) for data in trial_jpegs()]

    assert [image.mode for image in images] == ["RGB", "RGB", "L"]
    assert all(faultless_header(data) is not None for data in trial_jpegs())
