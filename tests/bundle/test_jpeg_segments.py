from typing import Any

import pytest
from PIL import Image

from bundle.jpeg_segments import (
    MOST_SCANS,
    has_too_many_scans,
    is_decoded_at_its_end,
    segments,
)
from tests.bundle.image_files import PIXELS, Encode, jpeg_in_scans

STEP = 1 << 18


@pytest.mark.parametrize("num_bytes", range(STEP - 4, STEP + 3))
@pytest.mark.parametrize("fill", [b"", b"\xff" * 3])
def test_a_segment_is_found_wherever_the_search_steps_meet(num_bytes: int, fill: bytes) -> None:
    pixels = b"\x55" * num_bytes

    found = list(segments(b"\xff\xd8" + pixels + fill + b"\xff\xfe\x00\x03A"))

    assert found == [(0xFE, b"A")]


@pytest.mark.parametrize("num_bytes", [0, 1, *range(STEP - 5, STEP)])
@pytest.mark.parametrize("num_scans", [MOST_SCANS, MOST_SCANS + 1])
def test_every_scan_counts_wherever_the_search_steps_meet(num_bytes: int, num_scans: int) -> None:
    scan = b"\xff\xda\x00\x03A"
    data = b"\xff\xd8" + scan + b"\x55" * num_bytes + (num_scans - 1) * scan

    assert has_too_many_scans(data) == (num_scans > MOST_SCANS)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8"])
def test_what_is_too_short_has_no_scans(data: bytes) -> None:
    assert not has_too_many_scans(data)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"progressive": False}, {"progressive": True}], ids=str)
def test_a_progressive_jpeg_is_decoded_at_its_end(
    encode: Encode, mode: str, options: dict[str, Any]
) -> None:
    data = encode(Image.fromarray(PIXELS).convert(mode), "JPEG", **options)

    assert is_decoded_at_its_end(data) == options["progressive"]


def test_a_jpeg_that_has_its_colours_one_after_another_is_decoded_at_its_end() -> None:
    assert is_decoded_at_its_end(jpeg_in_scans(Image.fromarray(PIXELS)))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8" + b"\xff\xfe\0\2" * 2000])
def test_a_jpeg_that_does_not_tell_may_be_decoded_at_its_end(data: bytes) -> None:
    assert is_decoded_at_its_end(data)
