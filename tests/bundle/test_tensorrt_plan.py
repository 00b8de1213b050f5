import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bundle.preprocess import Preprocess, resized_size
from bundle.tensorrt_plan import (
    BatchShape,
    Fingerprint,
    ShapeProfile,
    TensorRTPlan,
    default_profiles,
    max_batch,
)

FINGERPRINT = Fingerprint(
    gpu="NVIDIA L4", compute_capability="8.9", tensorrt="11.4.0.106", plugin_sha256="a" * 64
)
FULL_SIZE = Preprocess(min_side=64)
sides = st.integers(1, 3000)


def profile(*sizes: tuple[int, int, int]) -> ShapeProfile:
    least, opt, most = (BatchShape(*size) for size in sizes)
    return ShapeProfile(min=least, opt=opt, max=most)


@pytest.mark.parametrize(
    "sizes",
    [
        [(1, 64, 64), (4, 65, 64), (4, 64, 64)],
        [(1, 64, 64), (4, 63, 64), (4, 64, 64)],
        [(2, 64, 64), (4, 64, 64), (4, 64, 64)],
        [(1, 0, 64), (4, 64, 64), (4, 64, 64)],
    ],
    ids=["opt above max", "opt below min", "no single images", "nothing"],
)
def test_a_profile_that_makes_no_sense_is_refused(sizes: list[tuple[int, int, int]]) -> None:
    with pytest.raises(ValidationError, match="expected 1 <= min <= opt <= max and batches from 1"):
        profile(*sizes)


def test_a_plan_is_the_same_after_a_round_through_json() -> None:
    plan = TensorRTPlan(
        file="model.plan", fingerprint=FINGERPRINT, profiles=default_profiles(FULL_SIZE, 8)
    )

    assert TensorRTPlan.model_validate_json(plan.model_dump_json()) == plan


def test_a_fingerprint_differs_from_itself_in_nothing() -> None:
    assert FINGERPRINT.differences(FINGERPRINT) == []


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("gpu", "NVIDIA H100", "GPU: built for NVIDIA L4, found NVIDIA H100"),
        ("compute_capability", "9.0", "compute capability: built for 8.9, found 9.0"),
        ("tensorrt", "10.9.0.1", "TensorRT: built for 11.4.0.106, found 10.9.0.1"),
        ("plugin_sha256", "b" * 64, "plugin: built for aaaaaaaaaaaa, found bbbbbbbbbbbb"),
    ],
)
def test_every_difference_is_put_into_words(field: str, value: str, words: str) -> None:
    assert FINGERPRINT.differences(FINGERPRINT.model_copy(update={field: value})) == [words]


def test_a_machine_without_a_plugin_may_run_a_plan_that_carries_it() -> None:
    assert FINGERPRINT.differences(FINGERPRINT.model_copy(update={"plugin_sha256": None})) == []


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 300), st.integers(1, 16))
def test_default_profiles_take_full_batches(
    short_side: int, long_side: int, min_side: int, batch: int
) -> None:
    preprocess = Preprocess(
        short_side=short_side, long_side=max(short_side, long_side), min_side=min_side
    )

    assert max_batch(default_profiles(preprocess, batch), preprocess) == batch


@given(sides, sides)
def test_default_profiles_take_every_image(height: int, width: int) -> None:
    resized = resized_size(
        height, width, short_side=FULL_SIZE.short_side, long_side=FULL_SIZE.long_side
    )
    padded = BatchShape(1, *(max(side, FULL_SIZE.min_side) for side in resized))

    takers = [
        p for p in default_profiles(FULL_SIZE, 8) if padded.fits(p.max) and p.min.fits(padded)
    ]

    assert takers


def test_default_profiles_are_for_single_images_and_for_batches_of_both_orientations() -> None:
    assert [tuple(p.max) for p in default_profiles(FULL_SIZE, 8)] == [
        (1, 800, 1333),
        (1, 1333, 800),
        (8, 800, 1333),
        (8, 1333, 800),
    ]


def test_square_images_one_by_one_need_one_profile() -> None:
    (only,) = default_profiles(Preprocess(short_side=640, long_side=640), 1)

    assert only.max == (1, 640, 640)
    assert only.opt == (1, 480, 640)


def test_the_batch_is_that_of_the_orientation_that_takes_fewer() -> None:
    landscape = profile((1, 64, 64), (4, 800, 1067), (8, 800, 1333))
    portrait = profile((1, 64, 64), (2, 1067, 800), (2, 1333, 800))

    assert max_batch((landscape, portrait), FULL_SIZE) == 2


def test_profiles_that_lack_an_orientation_take_no_batch() -> None:
    landscape = profile((1, 64, 64), (4, 800, 1067), (8, 800, 1333))

    assert max_batch((landscape,), FULL_SIZE) == 0
