"""JPEG files whose scans are not all there, although they end as they should."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from bundle.preprocess import UndecodableImage, decode_image, read_header
from tests.bundle.image_files import Encode, jpeg_in_scans


@pytest.mark.parametrize("read", [decode_image, read_header])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_one_of_its_colours_is_refused(
    scene: np.ndarray, read: Callable[[bytes], object], progressive: bool
) -> None:
    pixels = Image.fromarray(scene)
    whole = decode_image(jpeg_in_scans(pixels, progressive=progressive))

    assert np.abs(whole.astype(int) - scene).mean() < 8
    for number in (1, 2, 3):
        with pytest.raises(UndecodableImage, match="a part of its pixels is missing"):
            read(jpeg_in_scans(pixels, progressive=progressive, without=number))


def test_a_jpeg_may_leave_out_what_only_makes_it_sharper(encode: Encode, scene: np.ndarray) -> None:
    data = encode(scene, "JPEG", progressive=True)
    whole, scans = decode_image(data), [found.start() for found in re.finditer(b"\xff\xda", data)]

    for start in scans[1:]:
        pixels = decode_image(data[:start] + b"\xff\xd9")
        assert np.abs(pixels.astype(int) - whole).mean() < 20
