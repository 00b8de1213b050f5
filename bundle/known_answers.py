"""Known answers: small images in a bundle, with the model's output for each.

An engine is tested on them before it serves. They expose missing or scaled scores, shifted boxes,
wrong classes and random boxes, even for a model whose scores are all low.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from bundle.atomic import write_atomically
from bundle.comparison import match
from bundle.detect import Predict
from bundle.layout import KNOWN_ANSWERS_FILE
from bundle.manifest import REMEDY
from bundle.postprocess import ImageOutput
from bundle.preprocess import Preprocess, Uint8Array, pad_batch, resized_size

NUM_IMAGES: Final = 3
_NUM_CANDIDATES: Final = 8  # that the answers are chosen from
SIDE_PX: Final = 128  # short side of the first image: a few percent of a full-size run
_LOWEST_SCORE = 1e-7  # logits of scores are finite from here


class KnownAnswer(NamedTuple):
    """An image (H, W, 3) uint8 RGB, not resized, and the model's output for it alone."""

    image: Uint8Array
    expected: ImageOutput


class Errors(NamedTuple):
    """How far an output is from a known answer.

    score: the largest difference of scores of equal rank. shift: how far the median logit has
    moved, which reveals scaled scores even if all are low. box_px: the median distance of boxes
    from their counterparts, in the coordinate farthest off. lost: the share of the sum of scores
    that belongs to detections without a counterpart.
    """

    score: float
    shift: float
    box_px: float
    lost: float

    def is_within(self, tolerance: "Errors") -> bool:
        """Whether every error is tolerated; NaN never is."""
        return all(error <= most for error, most in zip(self, tolerance, strict=True))

    def relative_to(self, tolerance: "Errors") -> "Errors":
        """Every error as a fraction of its tolerance."""
        return Errors(*(error / most for error, most in zip(self, tolerance, strict=True)))


# How far an engine may be off, by the precision it computes in. Engines in float32 were off by less
# than a hundredth of this; docs/numerics.md has the measurements for the other precisions.
TOLERANCES: Final[dict[str, Errors]] = {
    "fp32": Errors(score=0.001, shift=0.01, box_px=0.05, lost=0.01),
    "fp16": Errors(score=0.05, shift=0.08, box_px=0.5, lost=0.05),
    "bf16": Errors(score=0.05, shift=0.08, box_px=0.5, lost=0.05),
    "int8": Errors(score=0.07, shift=0.08, box_px=1.0, lost=0.1),
    "fp8": Errors(score=0.07, shift=0.08, box_px=1.0, lost=0.1),
}


class Reach(NamedTuple):
    """How far away a counterpart may be: the difference of logits, and the distance of boxes."""

    logit: float
    box_px: float


REACHES: Final[dict[str, Reach]] = {
    "fp32": Reach(logit=0.02, box_px=0.5),
    "fp16": Reach(logit=0.25, box_px=2.0),
    "bf16": Reach(logit=0.25, box_px=2.0),
    "int8": Reach(logit=0.35, box_px=2.0),
    "fp8": Reach(logit=0.35, box_px=2.0),
}


def errors(answer: KnownAnswer, found: ImageOutput, *, precision: str) -> Errors:
    """How far an engine's output is from a known answer; infinite if it has another length.

    Args:
        precision: what the engine computes in; decides how near a counterpart has to be.
    """
    expected = answer.expected
    if expected.scores.shape != found.scores.shape:
        return Errors(*[np.inf] * len(Errors._fields))
    paired = pair(answer, found, precision=precision)
    is_judged = ~paired.is_at_cut
    is_lost = is_judged & (paired.distances_px > REACHES[precision].box_px)
    weights = expected.scores + _LOWEST_SCORE
    return Errors(
        score=float(np.abs(expected.scores - found.scores).max()),
        shift=abs(_median(_logits(found) - _logits(expected))),
        box_px=_median(paired.distances_px[is_judged]),
        lost=float(weights[is_lost].sum() / weights[is_judged].sum()),
    )


class Pairs(NamedTuple):
    """The counterparts of N expected detections; see `Match`.

    distances_px (N,) float64: between the boxes, in the coordinate farthest off; infinite without
    a counterpart.
    """

    counterparts: npt.NDArray[np.int64]
    is_at_cut: npt.NDArray[np.bool_]
    distances_px: npt.NDArray[np.float64]


def pair(answer: KnownAnswer, found: ImageOutput, *, precision: str) -> Pairs:
    """Find every expected detection in an output of the same length."""
    by_logit = (output._replace(scores=_logits(output)) for output in (answer.expected, found))
    matched = match(*by_logit, slack=REACHES[precision].logit)
    height, width = answer.image.shape[:2]
    apart = np.abs(answer.expected.boxes - found.boxes[matched.counterparts])
    distances_px = (apart * (width, height, width, height)).max(axis=1)
    return Pairs(*matched, np.where(matched.counterparts < 0, np.inf, distances_px))


def write_known_answers(
    directory: Path,
    predict: Predict,
    *,
    preprocess: Preprocess,
    images: Sequence[Uint8Array],
    rounded: Predict | None = None,
) -> None:
    """Run a model on small images, each alone, and write its answers into a bundle.

    Args:
        predict: the model in float32, in PyTorch.
        preprocess: of the bundle.
        images: (H, W, 3) uint8 RGB of any sizes; three of the first eight are used, cropped and
            scaled down.
        rounded: the model with less exact numbers. The images on which it agrees best are used:
            where a decision is close, any lower precision deviates and says little about an
            engine. None uses the first three.
    """
    height, width = _first_size(preprocess)
    smaller = max(1, height * 3 // 4), max(1, width * 5 // 8)
    left = list(images[:_NUM_CANDIDATES])
    chosen: list[KnownAnswer] = []
    for size, count in (((height, width), 1), (smaller, NUM_IMAGES - 1)):
        candidates = left[:count] if rounded is None else left
        asked = [_ask(predict, image, size, preprocess.min_side) for image in candidates]
        order: Sequence[int] = range(count)
        if rounded is not None:
            order = _steadiest_first(asked, rounded, preprocess.min_side)[:count]
        chosen += [asked[place] for place in order]
        left = [image for place, image in enumerate(left) if place not in order]
    arrays: dict[str, npt.NDArray[Any]] = {}
    for number, answer in enumerate(chosen):
        arrays[f"{number}.image"] = answer.image
        arrays |= {f"{number}.{name}": part for name, part in answer.expected._asdict().items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(directory / KNOWN_ANSWERS_FILE, buffer.getvalue())


def read_known_answers(directory: Path) -> tuple[KnownAnswer, ...]:
    """The known answers of a bundle.

    Raises:
        ValueError: there are none, or they cannot be read; says what to run.
    """
    path = directory / KNOWN_ANSWERS_FILE
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return tuple(
                KnownAnswer(
                    file[f"{number}.image"],
                    ImageOutput(*(file[f"{number}.{name}"] for name in ImageOutput._fields)),
                )
                for number in range(NUM_IMAGES)
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not readable as known answers ({error}); {REMEDY}") from error


def _steadiest_first(
    answers: Sequence[KnownAnswer], rounded: Predict, min_side: int
) -> Sequence[int]:
    """Positions of answers: those with a detection first, then by closeness of a rounded model."""
    best = [float(answer.expected.scores.max(initial=0)) for answer in answers]

    def rank(place: int) -> tuple[bool, float]:
        (found,) = rounded(*pad_batch([answers[place].image], min_side)).rows()
        off = errors(answers[place], found, precision="bf16")
        return best[place] < max(best) / 2, max(off.relative_to(TOLERANCES["bf16"]))

    return sorted(range(len(answers)), key=rank)


def _ask(predict: Predict, image: Uint8Array, size: tuple[int, int], min_side: int) -> KnownAnswer:
    cropped = ImageOps.fit(Image.fromarray(image), size[::-1], Image.Resampling.BILINEAR)
    small = np.asarray(cropped)
    (expected,) = predict(*pad_batch([small], min_side)).rows()
    return KnownAnswer(small, expected)


def _first_size(preprocess: Preprocess) -> tuple[int, int]:
    """The size of a 4:3 photograph, which for small models is also the size of the warm-up."""
    short = min(preprocess.short_side, max(SIDE_PX, preprocess.min_side))
    return resized_size(3, 4, short_side=short, long_side=preprocess.long_side)


def _median(values: npt.NDArray[np.floating]) -> float:
    """The median; NaN if a value is. numpy's imports a package, 20 ms at every start."""
    ordered = np.sort(values)  # NaN last
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return float(ordered[-1] if np.isnan(ordered[-1]) else middle.mean())


def _logits(output: ImageOutput) -> npt.NDArray[np.float32]:
    scores = np.clip(output.scores.astype(np.float64), _LOWEST_SCORE, 1 - _LOWEST_SCORE)
    return np.log(scores / (1 - scores)).astype(np.float32)
