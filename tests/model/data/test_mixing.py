"""Samples made of several images: where an object is, there is its box, and nowhere else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import AugmentConfig
from model.configs import tiny
from model.data.loading import open_data
from model.data.mixing import make_mix, mosaic, paste_objects
from model.data.transforms import Sample

GROUND = 0


def colour(label: int) -> int:
    return 100 + 20 * label


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A dark image with up to three bright objects, side by side, that show their labels."""
    height, width = draw(st.integers(40, 90)), draw(st.integers(60, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    image = np.full((height, width, 3), GROUND, np.uint8)
    boxes, labels = [], []
    for slot in range(draw(st.integers(0, 3))):
        column = slot * width // 3
        left, top = column + int(rng.integers(1, 5)), int(rng.integers(1, height - 20))
        right, bottom = left + int(rng.integers(8, 15)), top + int(rng.integers(8, 18))
        labels.append(int(rng.integers(0, 6)))
        image[top:bottom, left:right] = colour(labels[-1])
        boxes.append([left, top, right, bottom])
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))


def assert_boxes_are_where_objects_are(sample: Sample) -> None:
    height, width = sample.image.shape[:2]
    boxes = sample.boxes_xyxy_px
    assert boxes.shape == (len(sample.labels), 4)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (width, height)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    is_ground = np.ones((height, width), bool)
    for (left, top, right, bottom), label in zip(boxes, sample.labels, strict=True):
        # Scaling blends the pixels at the edge of an object.
        inside = sample.image[
            int(np.ceil(top)) + 2 : max(0, int(bottom) - 2),
            int(np.ceil(left)) + 2 : max(0, int(right) - 2),
        ]
        assert (inside == colour(label)).all()
        is_ground[
            max(0, int(top) - 2) : int(np.ceil(bottom)) + 2,
            max(0, int(left) - 2) : int(np.ceil(right)) + 2,
        ] = False
    assert (sample.image[is_ground] == GROUND).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(samples(), min_size=4, max_size=4), st.integers(0, 2**16))
def test_a_mosaic_has_a_box_for_every_object_and_no_other(four: list[Sample], seed: int) -> None:
    made = mosaic(four, np.random.default_rng(seed))

    assert made.image.shape == four[0].image.shape
    assert_boxes_are_where_objects_are(made)


@settings(deadline=None)
@given(samples(), samples(), st.integers(0, 2**16))
def test_pasted_objects_bring_their_boxes_and_cover_no_other(
    sample: Sample, source: Sample, seed: int
) -> None:
    made = paste_objects(sample, source, rng=np.random.default_rng(seed), most=2)

    count = len(sample.labels)
    assert_boxes_are_where_objects_are(made)
    np.testing.assert_array_equal(made.boxes_xyxy_px[:count], sample.boxes_xyxy_px)
    assert made.labels[:count].tolist() == sample.labels.tolist()
    assert len(made.labels) <= count + 2
    assert set(made.labels[count:]) <= set(source.labels)


def plain(label: int, *boxes: list[float], size: tuple[int, int] = (40, 40)) -> Sample:
    image = np.full((*size, 3), colour(label), np.uint8)
    all_boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(image, all_boxes, np.full(len(boxes), label))


def test_an_object_is_pasted_where_there_is_room() -> None:
    empty = plain(0)

    made = paste_objects(empty, plain(3, [2, 3, 12.5, 20]), rng=np.random.default_rng(0), most=3)

    assert made.labels.tolist() == [3]
    np.testing.assert_array_equal(made.boxes_xyxy_px[0, 2:] - made.boxes_xyxy_px[0, :2], [10.5, 17])
    assert (made.image[..., 0] == colour(3)).sum() == 11 * 17  # with the pixel that it half covers
    assert (empty.image == colour(0)).all()


def test_objects_beside_each_other_are_pasted_each_by_itself() -> None:
    source = plain(3, [0, 0, 9, 9], [20, 0, 29, 9], [20, 9, 29, 18])

    made = paste_objects(plain(0), source, rng=np.random.default_rng(0), most=3)

    assert made.labels.tolist() == [3, 3, 3]


def test_where_nothing_is_pasted_labels_keep_their_type() -> None:
    made = paste_objects(plain(0), plain(1), rng=np.random.default_rng(0), most=3)

    assert made.labels.dtype == plain(0).labels.dtype == np.int64


@pytest.mark.parametrize(
    ("sample", "source"),
    [
        (plain(0, [0, 0, 40, 40]), plain(1, [0, 0, 9, 9])),
        (plain(0, [0, 0, 1, 1]), plain(1, [0, 0, 9, 9], [8.5, 8.5, 20, 20])),
        (plain(0, size=(40, 5)), plain(1, [0, 0, 9, 9])),
        (plain(0, size=(5, 40)), plain(1, [0, 0, 9, 9])),
    ],
    ids=["no room", "objects that touch", "wider than the image", "higher than the image"],
)
def test_what_would_make_a_box_wrong_is_not_pasted(sample: Sample, source: Sample) -> None:
    made = paste_objects(sample, source, rng=np.random.default_rng(0), most=3)

    assert made.labels.tolist() == sample.labels.tolist()
    np.testing.assert_array_equal(made.image, sample.image)


@pytest.mark.parametrize("augment", [None, AugmentConfig()])
def test_nothing_is_mixed_unless_asked_for(augment: AugmentConfig | None) -> None:
    assert make_mix(augment) is None


@pytest.mark.parametrize("asked_for", [{"mosaic_probability": 0.1}, {"paste_probability": 0.1}])
def test_either_way_of_mixing_can_be_asked_for_alone(asked_for: dict[str, float]) -> None:
    assert make_mix(AugmentConfig(**asked_for)) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("asked_for", [{"mosaic_probability": 0.5}, {"paste_probability": 0.5}])
def test_the_share_of_samples_that_is_asked_for_is_mixed(asked_for: dict[str, float]) -> None:
    mix = make_mix(AugmentConfig(**asked_for))  # type: ignore[arg-type]
    other = plain(3, [0, 0, 9, 9], [20, 20, 29, 29])
    assert mix is not None

    made = [mix(plain(0), lambda _: other, np.random.default_rng(k)) for k in range(40)]

    is_mixed = [bool((one.image == colour(3)).any()) for one in made]
    assert 10 < sum(is_mixed) < 30


def test_no_more_objects_are_pasted_than_asked_for() -> None:
    mix = make_mix(AugmentConfig(paste_probability=1, paste_objects=1))
    other = plain(3, [0, 0, 9, 9], [20, 20, 29, 29])
    assert mix is not None

    made = mix(plain(0), lambda _: other, np.random.default_rng(0))

    assert made.labels.tolist() == [3]


def test_an_image_of_one_row_is_no_mosaic() -> None:
    row, other = plain(0, size=(1, 40)), plain(3)

    made = mosaic([row, other, other, other], np.random.default_rng(0))

    np.testing.assert_array_equal(made.image, row.image)


def test_a_training_image_is_mixed_with_others_of_its_data_set(images: Path) -> None:
    config = tiny()
    augment = replace(config.augment or AugmentConfig(), crop_probability=0.0)
    mixing = replace(augment, mosaic_probability=1.0, paste_probability=1.0)
    alone, mixed, again = (
        open_data(replace(config, augment=a), images).train for a in (augment, mixing, mixing)
    )

    targets = [mixed[index][1] for index in range(len(mixed))]

    assert [t["image_id"] for t in targets] == [alone[i][1]["image_id"] for i in range(len(alone))]
    assert not np.array_equal(mixed[0][0], alone[0][0])
    np.testing.assert_array_equal(mixed[0][0], again[0][0])
