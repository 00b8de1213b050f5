"""Properties of the training augmentation: boxes stay true to the pixels."""

import dataclasses
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.preprocess import Preprocess, prepare, resized_size
from model.config import AugmentConfig
from model.data.transforms import (
    Sample,
    augment_sample,
    crop,
    flip,
    flip_vertically,
    jitter_colour,
    largest_size,
    make_transform,
    random_crop,
    resize,
    to_target,
    zoom,
)

SMALL = AugmentConfig(
    short_sides=(40, 56),
    long_side=90,
    crop_short_sides=(32, 48),
    crop_long_side=300,
    crop_min=30,
    crop_max=45,
)


NO_BOXES = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Images of 1..80 pixels a side with 0..4 boxes inside; a box's label is its index."""
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    num_boxes = draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    corners = np.sort(rng.random((num_boxes, 2, 2)), axis=1) * (width, height)
    return Sample(
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        corners.reshape(-1, 4).astype(np.float32),
        np.arange(num_boxes),
    )


@given(samples(), st.integers(0, 2**16))
def test_no_image_becomes_larger_than_is_foretold(sample, seed):
    sizes = np.array([sample.image.shape[:2]])

    height, width = augment_sample(sample, np.random.default_rng(seed), config=SMALL).image.shape[
        :2
    ]

    largest = largest_size(sizes, SMALL, preprocess=Preprocess())
    assert height <= largest[0]
    assert width <= largest[1]


def test_the_largest_batch_is_foretold_by_the_images_and_by_the_crops():
    landscapes = np.array([[480, 640], [300, 600]])
    mixed = np.array([[480, 640], [640, 480]])
    preprocess = Preprocess(short_side=240, long_side=400)
    uncropped = AugmentConfig(crop_probability=0)

    assert largest_size(landscapes, None, preprocess=preprocess) == (240, 400)
    assert largest_size(mixed, None, preprocess=preprocess) == (320, 320)
    assert largest_size(mixed, uncropped, preprocess=preprocess) == (1067, 1067)
    assert largest_size(landscapes, AugmentConfig(), preprocess=preprocess) == (1250, 1333)
    shorter = AugmentConfig(long_side=1000)
    assert largest_size(landscapes, shorter, preprocess=preprocess) == (1000, 1000)
    padded = preprocess.model_copy(update={"min_side": 300})
    assert largest_size(landscapes, None, preprocess=padded) == (300, 400)


@given(samples(), st.integers(0, 2**16))
def test_boxes_stay_inside_the_image_and_keep_their_labels(sample, seed):
    result = augment_sample(sample, np.random.default_rng(seed), config=SMALL)

    height, width = result.image.shape[:2]
    assert result.image.dtype == np.uint8
    assert min(height, width) >= 1
    assert len(result.boxes_xyxy_px) == len(result.labels)
    assert set(result.labels) <= set(sample.labels)
    assert (result.boxes_xyxy_px >= 0).all()
    assert (result.boxes_xyxy_px <= np.array([width, height, width, height])).all()
    assert (result.boxes_xyxy_px[:, 2:] >= result.boxes_xyxy_px[:, :2]).all()


@given(samples(), st.sampled_from([flip, flip_vertically]))
def test_flipping_twice_gives_the_image_back(sample, flip_either_way):
    boxes = sample.boxes_xyxy_px.copy()

    result = flip_either_way(flip_either_way(sample))

    np.testing.assert_array_equal(result.image, sample.image)
    np.testing.assert_allclose(result.boxes_xyxy_px, boxes, atol=1e-5)
    flip_either_way(sample)
    np.testing.assert_array_equal(sample.boxes_xyxy_px, boxes)


@pytest.mark.parametrize(
    ("probabilities", "corner"),
    [((0, 0), (3, 2)), ((1, 0), (11, 2)), ((0, 1), (3, 5)), ((1, 1), (11, 5))],
)
def test_a_flipped_box_still_covers_the_same_pixels(probabilities, corner):
    image = np.zeros((10, 20, 3), dtype=np.uint8)
    image[2:5, 3:9] = 255
    boxes = np.array([[3, 2, 9, 5]], dtype=np.float32)
    horizontal, vertical = probabilities
    config = AugmentConfig(
        flip_probability=horizontal,
        vertical_flip_probability=vertical,
        short_sides=(10,),
        long_side=20,
        crop_probability=0,
    )

    result = augment_sample(
        Sample(image, boxes, np.array([0])), np.random.default_rng(0), config=config
    )

    x1, y1, x2, y2 = result.boxes_xyxy_px[0].astype(int)
    assert (x1, y1) == corner
    assert (result.image[y1:y2, x1:x2] == 255).all()
    assert result.image.sum() == image.sum()


@given(samples(), st.integers(1, 60), st.integers(60, 120))
def test_resizing_scales_boxes_with_the_image(sample, short_side, long_side):
    height, width = sample.image.shape[:2]

    result = resize(sample, short_side, long_side=long_side)

    new_height, new_width = result.image.shape[:2]
    assert (new_height, new_width) == resized_size(
        height, width, short_side=short_side, long_side=long_side
    )
    np.testing.assert_allclose(
        result.boxes_xyxy_px / np.array([new_width, new_height] * 2),
        sample.boxes_xyxy_px / np.array([width, height] * 2),
        atol=1e-5,
    )


def test_a_crop_shifts_clips_and_drops_boxes():
    boxes = np.array([[0, 0, 10, 10], [15, 15, 40, 40], [30, 30, 40, 40]], dtype=np.float32)
    sample = Sample(np.zeros((40, 40, 3), dtype=np.uint8), boxes, np.array([5, 6, 7]))

    result = crop(sample, top=10, left=12, height=20, width=18)

    assert result.image.shape == (20, 18, 3)
    assert result.labels.tolist() == [6]
    assert result.boxes_xyxy_px.tolist() == [[3, 5, 18, 20]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 500), (500, 3), (35, 35)])
def test_a_crop_is_never_larger_than_the_image(height, width):
    sample = Sample(np.zeros((height, width, 3), np.uint8), np.zeros((0, 4), np.float32),
                    np.zeros(0, np.int64))  # fmt: skip

    result = random_crop(sample, np.random.default_rng(0), crop_min=384, crop_max=600)

    assert min(384, height) <= result.image.shape[0] <= height
    assert min(384, width) <= result.image.shape[1] <= width


def test_an_image_without_boxes_gives_an_empty_target():
    sample = Sample(np.zeros((50, 60, 3), np.uint8), np.zeros((0, 4), np.float32),
                    np.zeros(0, np.int64))  # fmt: skip

    target = to_target(augment_sample(sample, np.random.default_rng(1), config=SMALL), image_id=4)

    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["image_id"] == 4


def test_published_sizes_are_drawn_from_the_recipe():
    sample = Sample(np.zeros((480, 640, 3), np.uint8), np.zeros((0, 4), np.float32),
                    np.zeros(0, np.int64))  # fmt: skip
    config = AugmentConfig(crop_probability=0.0)
    rng = np.random.default_rng(0)

    short_sides = {augment_sample(sample, rng, config=config).image.shape[0] for _ in range(80)}

    assert short_sides == set(range(480, 801, 32))


def test_without_augmentation_training_sees_what_inference_sees():
    preprocess = Preprocess(short_side=48, long_side=100)
    image = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    sample = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    result = make_transform(None, preprocess)(sample, np.random.default_rng(0))

    np.testing.assert_array_equal(result.image, prepare(image, preprocess)[0])


def test_a_transform_can_be_sent_to_a_worker_process():
    transform = make_transform(SMALL, Preprocess())

    assert pickle.loads(pickle.dumps(transform)).keywords == {"config": SMALL}


def test_targets_are_normalised_by_the_resized_image():
    sample = Sample(np.zeros((50, 100, 3), np.uint8),
                    np.array([[10, 10, 30, 40]], np.float32), np.array([2]))  # fmt: skip

    target = to_target(sample, image_id=1)

    np.testing.assert_allclose(target["boxes"].numpy(), [[0.2, 0.5, 0.2, 0.6]])
    assert target["size"].tolist() == [50, 100]


@given(samples(), st.floats(0.1, 3.0), st.integers(0, 2**16))
def test_a_zoomed_image_is_no_larger_than_without_and_keeps_boxes_inside(sample, factor, seed):
    rng = np.random.default_rng(seed)
    plain = resize(sample, 40, long_side=90)

    zoomed = zoom(sample, factor, short_side=40, long_side=90, rng=rng)

    height, width = zoomed.image.shape[:2]
    assert height <= plain.image.shape[0]
    assert width <= plain.image.shape[1]
    assert (zoomed.boxes_xyxy_px >= 0).all()
    assert (zoomed.boxes_xyxy_px[:, 2:] <= (width, height)).all()
    assert len(zoomed.boxes_xyxy_px) == len(zoomed.labels) <= len(sample.labels)


def test_zooming_out_scales_boxes_and_zooming_in_crops_them():
    image = np.zeros((40, 60, 3), np.uint8)
    sample = Sample(image, np.array([[0, 0, 60, 40]], np.float32), np.array([1]))

    out, inside = (
        zoom(sample, factor, short_side=40, long_side=90, rng=np.random.default_rng(0))
        for factor in (0.5, 2.0)
    )

    assert out.image.shape == (20, 30, 3)
    assert out.boxes_xyxy_px.tolist() == [[0, 0, 30, 20]]
    assert inside.image.shape == (40, 60, 3)
    assert inside.boxes_xyxy_px.tolist() == [[0, 0, 60, 40]]


def test_colours_change_with_the_strength_and_grey_stays_grey():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 180, (20, 30, 3), dtype=np.uint8)
    grey = np.repeat(image[..., :1], 3, axis=2)

    def mean_change(strength: float) -> float:
        changed = jitter_colour(image, strength, rng=np.random.default_rng(5)).astype(int)
        return float(np.abs(changed - image).mean())

    jittered = jitter_colour(grey, 1.0, rng=np.random.default_rng(5))

    assert mean_change(0.01) < 3 < mean_change(0.3) < mean_change(1.0)
    assert (jittered == jittered[..., :1]).all()


def test_the_hue_turns_either_way_and_by_no_more_than_18_degrees():
    image = np.full((4, 4, 3), (150, 90, 90), np.uint8)

    jittered = [jitter_colour(image, 1.0, rng=np.random.default_rng(k))[:1, :1] for k in range(40)]

    hues = [int(cv2.cvtColor(pixel, cv2.COLOR_RGB2HSV)[0, 0, 0]) for pixel in jittered]
    degrees = [2 * (hue - 180 * (hue > 90)) for hue in hues]
    assert max(map(abs, degrees)) <= 18 + 2  # of rounding
    assert min(degrees) < -10
    assert max(degrees) > 10


def test_brightness_changes_by_up_to_a_half_and_what_is_brighter_stays_so():
    grey, ramp = np.full((4, 4, 3), 120, np.uint8), np.arange(256, dtype=np.uint8)
    ramp = np.repeat(ramp[None, :, None], 3, axis=2)

    changed = [
        [jitter_colour(image, 1.0, rng=np.random.default_rng(k)).astype(int) for k in range(40)]
        for image in (grey, ramp)
    ]

    means = [image.mean() for image in changed[0]]
    assert 60 <= min(means) < 80
    assert 160 < max(means) <= 180
    assert all((np.diff(image, axis=1) >= 0).all() for image in changed[1])


def test_a_pure_colour_stays_one():
    red = np.full((4, 4, 3), (200, 0, 0), np.uint8)

    changed = [jitter_colour(red, 0.2, rng=np.random.default_rng(k)) for k in range(40)]

    assert all(image[0, 0, 0] > image[0, 0, 1:].max() + 100 for image in changed)


def test_an_image_is_cropped_at_any_of_the_sizes_for_crops():
    gradient = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, axis=0)
    sample = Sample(np.repeat(gradient, 3, axis=2), *NO_BOXES)
    config = AugmentConfig(
        flip_probability=0, short_sides=(100,), crop_probability=1, crop_short_sides=(200, 400),
        crop_min=100, crop_max=100,
    )  # fmt: skip

    crops = [augment_sample(sample, np.random.default_rng(k), config=config) for k in range(20)]

    shares = {round(256 / int(np.ptp(crop.image))) for crop in crops}
    assert shares == {2, 4}


def test_an_image_that_is_to_be_cropped_may_be_longer_than_one_that_is_not():
    wide = Sample(np.zeros((100, 400, 3), np.uint8), *NO_BOXES)
    config = AugmentConfig(
        short_sides=(100,), long_side=100, crop_probability=1, crop_short_sides=(100,),
        crop_min=50, crop_max=50,
    )  # fmt: skip

    crop = augment_sample(wide, np.random.default_rng(0), config=config)

    assert crop.image.shape == (100, 100, 3)


@pytest.mark.parametrize("size", [(40, 80), (80, 40)])
def test_zooming_in_keeps_the_size(size):
    sample = Sample(np.zeros((*size, 3), np.uint8), *NO_BOXES)

    zoomed = [
        zoom(sample, 2.0, short_side=40, long_side=80, rng=np.random.default_rng(k))
        for k in range(20)
    ]

    assert {one.image.shape[:2] for one in zoomed} == {size}


def test_what_is_off_leaves_the_published_augmentation_as_it_is():
    sample = Sample(np.zeros((50, 70, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0))
    jittering = dataclasses.replace(SMALL, colour_jitter=0.5, crop_probability=0.0)
    plain = dataclasses.replace(SMALL, crop_probability=0.0)

    sizes = [
        [augment_sample(sample, np.random.default_rng(seed), config=config).image.shape
         for seed in range(8)]
        for config in (jittering, plain)
    ]  # fmt: skip

    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("factors", [(0.0, 1.0), (2.0, 1.0)])
def test_scale_factors_are_positive_and_in_order(factors):
    with pytest.raises(ValueError, match="two factors, the lower first"):
        AugmentConfig(scale_jitter=factors)
