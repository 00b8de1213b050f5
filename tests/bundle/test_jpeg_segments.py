import pytest

from bundle.jpeg_segments import segments


@pytest.mark.parametrize("num_bytes", range((1 << 18) - 4, (1 << 18) + 3))
@pytest.mark.parametrize("fill", [b"", b"\xff" * 3])
def test_a_segment_is_found_wherever_the_search_steps_meet(num_bytes: int, fill: bytes) -> None:
    pixels = b"\x55" * num_bytes

    found = list(segments(b"\xff\xd8" + pixels + fill + b"\xff\xfe\x00\x03A"))

    assert found == [(0xFE, b"A")]
