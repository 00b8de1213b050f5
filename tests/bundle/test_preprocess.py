import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.preprocess import (
    Preprocess,
    pad_batch,
    prepare,
    resized_size,
)

SIDES = st.integers(min_value=1, max_value=70_000)


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
        ((64, 65), (800, 813)),  # of 812.5
        ((1, 20_000), (1, 1333)),
    ],
)
def test_sizes_are_those_of_the_published_evaluation(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_size(*size, short_side=800, long_side=1333) == expected


@given(SIDES, SIDES)
def test_the_resized_image_fits_and_keeps_its_aspect(height: int, width: int) -> None:
    new_height, new_width = resized_size(height, width, short_side=800, long_side=1333)

    scale = min(1333 / max(height, width), 800 / min(height, width))
    assert 1 <= min(new_height, new_width) <= 800
    assert max(new_height, new_width) <= 1333
    assert abs(new_height - height * scale) <= 0.5 or new_height == 1
    assert abs(new_width - width * scale) <= 0.5 or new_width == 1


@given(SIDES, SIDES)
def test_resizing_commutes_with_transposing(height: int, width: int) -> None:
    assert (
        resized_size(height, width, short_side=800, long_side=1333)
        == resized_size(width, height, short_side=800, long_side=1333)[::-1]
    )


def interpolate(values: np.ndarray, size: int) -> np.ndarray:
    """Values at the centres of `size` pixels along the first axis, between the two nearest ones."""
    centres = ((np.arange(size) + 0.5) * len(values) / size - 0.5).clip(0, len(values) - 1)
    low = centres.astype(int)
    share = (centres - low)[:, None, None]
    return values[low] * (1 - share) + values[np.minimum(low + 1, len(values) - 1)] * share


@pytest.mark.parametrize("short_side", [25, 60, 120], ids=["smaller", "small", "large"])
def test_a_pixel_is_interpolated_between_its_nearest_four(short_side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)

    resized, geometry = prepare(noise, Preprocess(short_side=short_side, long_side=1000))

    height, width = geometry.resized
    rows = interpolate(noise.astype(float), height)
    expected = interpolate(rows.swapaxes(0, 1), width).swapaxes(0, 1)
    assert geometry.original == (96, 128)
    assert resized.shape == (height, width, 3)
    assert np.abs(resized - expected).max() <= 1


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
    np.testing.assert_array_equal(batch[..., 0], np.where(padding_mask, 0, 7))
    for (h, w), mask in zip(sizes, padding_mask, strict=True):
        assert not mask[:h, :w].any()
        assert (~mask).sum() == h * w


@pytest.mark.parametrize("reads_only", [True, False])
def test_one_large_image_is_not_padded(reads_only: bool) -> None:
    image = np.zeros((50, 60, 3), np.uint8)

    _, padding_mask = pad_batch([image], min_side=32, reads_only=reads_only)

    assert padding_mask.shape == (1, 50, 60)
    assert not padding_mask.any()
    assert padding_mask.flags.writeable != reads_only  # others get the same


@pytest.mark.parametrize("num_images", [1, 2])
def test_a_batch_may_be_written_where_its_images_may_not(num_images: int) -> None:
    images = [np.full((5, 6, 3), 7, np.uint8) for _ in range(num_images)]
    images[0].flags.writeable = False

    batch, _ = pad_batch(images)

    assert batch.flags.writeable
    assert batch.shape == (num_images, 5, 6, 3)


def test_a_smaller_image_is_padded_to_the_smallest_side() -> None:
    batch, padding_mask = pad_batch([np.zeros((5, 60, 3), np.uint8)], min_side=32)

    assert batch.shape == (1, 32, 60, 3)
    assert padding_mask.sum() == (32 - 5) * 60


@pytest.mark.parametrize("field", ["short_side", "long_side", "min_side"])
def test_sides_are_positive(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Preprocess(**{field: 0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("std", 0.0),
        ("std", -58.0),
        ("std", 0.229),
        ("std", 1e-40),
        ("std", math.inf),
        ("std", math.nan),
        ("mean", -1.0),
        ("mean", 256.0),
        ("mean", math.inf),
        ("mean", math.nan),
    ],
)
def test_what_makes_pixels_infinite_or_meaningless_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field}\n.* three numbers .*, got 58, 57, {value:g}; "):
        Preprocess(**{field: (58.0, 57.0, value)})


def test_pixels_may_stay_as_they_are() -> None:
    assert Preprocess(mean=(0, 0, 0), std=(1, 1, 1)).std == (1.0, 1.0, 1.0)
