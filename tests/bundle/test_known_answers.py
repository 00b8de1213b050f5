import shutil
from pathlib import Path

import numpy as np
import pytest

from bundle.known_answers import (
    TOLERANCES,
    Errors,
    KnownAnswer,
    errors,
    read_known_answers,
    write_known_answers,
)
from bundle.layout import KNOWN_ANSWERS_FILE
from bundle.postprocess import ImageOutput, RawOutput
from bundle.preprocess import BoolArray, Preprocess, Uint8Array
from tests.faults import FAULTS, Fault

HEIGHT, WIDTH = 96, 128
NUM_DETECTIONS, NUM_CLASSES = 100, 10


def answers_of_a_model(highest: float, lowest: float) -> RawOutput:
    """One image's detections, with scores that fall evenly from the highest to the lowest."""
    rng = np.random.default_rng(1)
    centres, sizes = rng.uniform(0.3, 0.7, (2, NUM_DETECTIONS, 2))
    boxes = np.concatenate([centres - sizes / 4, centres + sizes / 4], axis=1).clip(0, 1)
    return RawOutput(
        np.linspace(highest, lowest, NUM_DETECTIONS, dtype=np.float32)[None],
        rng.integers(0, NUM_CLASSES, (1, NUM_DETECTIONS)),
        boxes.astype(np.float32)[None],
    )


TRAINED = answers_of_a_model(0.95, 0.02)
BARELY_TRAINED = answers_of_a_model(0.0101, 0.0032)


def known(output: RawOutput) -> KnownAnswer:
    return KnownAnswer(np.zeros((HEIGHT, WIDTH, 3), np.uint8), output.rows()[0])


def rounded(output: RawOutput, logit: float, px: float) -> ImageOutput:
    """The output with noise of these sizes on logits and boxes, in the order of its scores."""
    rng = np.random.default_rng(2)
    scores, labels, boxes = output.rows()[0]
    logits = np.log(scores / (1 - scores)) + rng.normal(0, logit, scores.shape)
    noisy = 1 / (1 + np.exp(-logits))
    order = np.argsort(-noisy)
    moved = boxes + rng.normal(0, px / WIDTH, boxes.shape)
    return ImageOutput(
        noisy[order].astype(np.float32), labels[order], moved[order].astype(np.float32)
    )


@pytest.mark.parametrize("output", [TRAINED, BARELY_TRAINED], ids=["trained", "barely trained"])
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_is_within_the_tolerance_of_a_precision(
    output: RawOutput, precision: str, fault: Fault
) -> None:
    spoilt = fault(output, np.zeros((1, HEIGHT, WIDTH), np.bool_)).rows()[0]

    found = errors(known(output), spoilt, precision=precision)

    assert not found.is_within(TOLERANCES[precision])


@pytest.mark.parametrize("output", [TRAINED, BARELY_TRAINED], ids=["trained", "barely trained"])
@pytest.mark.parametrize(
    ("precision", "logit", "px"),
    [("fp32", 1e-4, 0.005), ("bf16", 0.02, 0.1), ("fp16", 0.02, 0.1), ("int8", 0.03, 0.2)],
)
def test_rounding_is_within_the_tolerance_of_its_precision(
    output: RawOutput, precision: str, logit: float, px: float
) -> None:
    found = errors(known(output), rounded(output, logit, px), precision=precision)

    assert found.is_within(TOLERANCES[precision])


def test_what_a_low_precision_may_do_is_too_much_for_float32() -> None:
    found = errors(known(TRAINED), rounded(TRAINED, 0.02, 0.1), precision="fp32")

    assert not found.is_within(TOLERANCES["fp32"])


def test_another_number_of_detections_is_infinitely_far() -> None:
    scores, labels, boxes = TRAINED.rows()[0]
    fewer = ImageOutput(scores[:-1], labels[:-1], boxes[:-1])

    assert errors(known(TRAINED), fewer, precision="fp32") == Errors(*[np.inf] * 4)


def test_one_box_that_is_not_a_number_is_never_tolerated() -> None:
    scores, labels, boxes = TRAINED.rows()[0]
    spoilt = boxes.copy()
    spoilt[0] = np.nan

    found = errors(known(TRAINED), ImageOutput(scores, labels, spoilt), precision="int8")

    assert not found.is_within(TOLERANCES["int8"])


def brightness(images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
    """A model that finds one thing, as sure as the first pixel is bright."""
    scores = images[:, :1, 0, 0].astype(np.float32) / np.float32(255)
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(images), 1, 1))
    return RawOutput(scores, np.zeros(scores.shape, np.int64), boxes)


PREPROCESS = Preprocess(short_side=800, long_side=1333, min_side=64)
GREYS = [np.full((300, 500, 3), level, np.uint8) for level in (51, 102, 153)]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_known_answers(tmp_path, brightness, preprocess=PREPROCESS, images=GREYS)

    known_answers = read_known_answers(tmp_path)

    scores = [answer.expected.scores.tolist() for answer in known_answers]
    assert scores == [[pytest.approx(0.2)], [pytest.approx(0.4)], [pytest.approx(0.6)]]


def test_images_are_small_and_of_two_sizes_whatever_the_size_of_the_models_images(
    tmp_path: Path,
) -> None:
    write_known_answers(tmp_path, brightness, preprocess=PREPROCESS, images=GREYS)

    known_answers = read_known_answers(tmp_path)

    sizes = [answer.image.shape for answer in known_answers]
    assert sizes == [(128, 171, 3), (96, 106, 3), (96, 106, 3)]


def dimmed(images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
    """`brightness`, off by more the brighter an image is."""
    output = brightness(images, padding_mask)
    return output._replace(scores=output.scores - output.scores * output.scores / np.float32(100))


def test_images_are_taken_on_which_a_rounded_model_is_least_off_and_finds_something(
    tmp_path: Path,
) -> None:
    images = [np.full((96, 128, 3), level, np.uint8) for level in (250, 200, 0, 150, 20, 220)]

    write_known_answers(tmp_path, brightness, preprocess=PREPROCESS, images=images, rounded=dimmed)

    levels = [int(answer.image[0, 0, 0]) for answer in read_known_answers(tmp_path)]
    assert levels == [150, 200, 220]


def test_no_image_is_larger_than_the_models(tmp_path: Path) -> None:
    small = Preprocess(short_side=64, long_side=70)

    write_known_answers(tmp_path, brightness, preprocess=small, images=GREYS)

    sizes = [answer.image.shape[:2] for answer in read_known_answers(tmp_path)]
    assert max(max(size) for size in sizes) == 70


def test_the_same_images_give_the_same_file(tmp_path: Path) -> None:
    write_known_answers(tmp_path, brightness, preprocess=PREPROCESS, images=GREYS)
    first = (tmp_path / KNOWN_ANSWERS_FILE).read_bytes()

    write_known_answers(tmp_path, brightness, preprocess=PREPROCESS, images=GREYS)

    assert (tmp_path / KNOWN_ANSWERS_FILE).read_bytes() == first


@pytest.mark.parametrize("length", [0, 100, -30])
def test_a_damaged_file_is_named_with_the_remedy(
    toy_bundle: Path, tmp_path: Path, length: int
) -> None:
    path = tmp_path / KNOWN_ANSWERS_FILE
    shutil.copy(toy_bundle / KNOWN_ANSWERS_FILE, path)
    path.write_bytes(path.read_bytes()[:length])

    with pytest.raises(ValueError, match=r"known-answers\.npz: not readable .*`make export`"):
        read_known_answers(tmp_path)
