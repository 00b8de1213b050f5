"""JPEGs decoded at a fraction of their size, for training."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from bundle.preprocess import decode_image
from tests.bundle.image_files import PIXELS, exif_of


@pytest.mark.parametrize(("least_side", "factor"), [(None, 1), (41, 1), (40, 2), (20, 4), (9, 8)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_at_the_least_fraction_that_is_large_enough(
    least_side: int | None, factor: int, orientation: int
) -> None:
    pixels = cv2.resize(PIXELS, (128, 80), interpolation=cv2.INTER_LINEAR)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, exif=exif_of(orientation))
    whole = decode_image(buffer.getvalue())

    found = decode_image(buffer.getvalue(), least_side=least_side)

    size = whole.shape[1] // factor, whole.shape[0] // factor
    expected = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 2


def test_a_fraction_of_the_size_is_rounded_up() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (121, 81)).save(buffer, "JPEG")

    assert decode_image(buffer.getvalue(), least_side=41).shape == (41, 61, 3)
    assert decode_image(buffer.getvalue(), least_side=42).shape == (81, 121, 3)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "CMYK"])
def test_whatever_is_no_plain_jpeg_is_decoded_in_full(image_format: str) -> None:
    image = Image.new("CMYK" if image_format == "CMYK" else "RGB", (64, 48))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if image_format == "CMYK" else image_format)

    assert decode_image(buffer.getvalue(), least_side=8).shape == (48, 64, 3)
