"""Tests at every start, before serving, whether an engine gives the bundle's known answers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bundle.known_answers import (
    TOLERANCES,
    Errors,
    KnownAnswer,
    errors,
    pair,
    read_known_answers,
)
from bundle.layout import CACHE_FOLDER
from bundle.manifest import REMEDY, Bundle, ClassInfo
from bundle.postprocess import ImageOutput
from bundle.preprocess import BoolArray, Uint8Array, pad_batch
from engines.base import Engine, EngineFailure


class WrongAnswers(ValueError):
    """The engine runs, but its answers are not the model's.

    `fault` is the message without the advice on what to run.
    """

    def __init__(self, fault: str, bundle: Bundle) -> None:
        directory = bundle.directory
        super().__init__(
            f"{directory}: {fault}; see all with `python -m service.selftest --bundle {directory}`"
            f"; remove {directory / CACHE_FOLDER} if it exists, choose another DETR_ENGINE, or "
            f"{REMEDY}"
        )
        self.fault = fault


class Outcome(NamedTuple):
    """How an engine did on one known answer."""

    image: str  # which image, its size, and whether alone or in a batch
    errors: Errors
    tolerance: Errors
    worst: str  # if it failed: the detection farthest off, expected and actual

    @property
    def ratios(self) -> Errors:
        """The errors as fractions of their tolerances."""
        return self.errors.relative_to(self.tolerance)

    @property
    def has_passed(self) -> bool:
        """Whether every error is within its tolerance."""
        return self.errors.is_within(self.tolerance)

    def describe(self) -> str:
        """The outcome in one line."""
        parts = (
            f"{name} {error:.2g}/{most:g}"
            for name, error, most in zip(Errors._fields, self.errors, self.tolerance, strict=True)
        )
        verdict = "passed" if self.has_passed else "FAILED"
        return f"{self.image}, error/tolerated: {', '.join(parts)}: {verdict}"


def self_check(engine: Engine, bundle: Bundle) -> list[Outcome]:
    """Run an engine on the known answers of its bundle.

    Each image runs alone; all run in one batch too, padded to one size, if the bundle allows it.

    Raises:
        ValueError: the bundle has no readable known answers.
        EngineFailure: the engine failed on an image; says which.
    """
    manifest = bundle.manifest
    answers = read_known_answers(bundle.directory)
    min_side = manifest.preprocess.min_side
    runs = [*_run_alone(engine, answers, min_side)]
    if manifest.batches == "any":
        runs += _run_padded(engine, answers, min_side)
    precision = engine.info.precision
    outcomes = []
    for image, answer, found in runs:
        off = errors(answer, found, precision=precision)
        outcome = Outcome(image, off, TOLERANCES[precision], worst="")
        if not outcome.has_passed:
            worst = _worst(answer, found, precision=precision, classes=manifest.classes)
            outcome = outcome._replace(worst=worst)
        outcomes.append(outcome)
    return outcomes


def require_known_answers(engine: Engine, bundle: Bundle) -> list[Outcome]:
    """Run `self_check` and require that it passes.

    Raises:
        ValueError, EngineFailure: as `self_check`.
        WrongAnswers: names the first image that failed, what was expected, what was found, and
            what to run.
    """
    outcomes = self_check(engine, bundle)
    for outcome in outcomes:
        if not outcome.has_passed:
            info = engine.info
            raise WrongAnswers(
                f"{info.runtime} ({info.precision}, graph {info.graph}) does not give the bundle's "
                f"known answers; {outcome.describe()}; {outcome.worst}",
                bundle,
            )
    return outcomes


class _Run(NamedTuple):
    image: str
    answer: KnownAnswer
    found: ImageOutput


def _run_alone(engine: Engine, answers: Sequence[KnownAnswer], min_side: int) -> Iterator[_Run]:
    for name, answer in zip(_names(answers), answers, strict=True):
        (found,) = _run(engine, name, *pad_batch([answer.image], min_side))
        yield _Run(f"{name} alone", answer, found)


def _run_padded(engine: Engine, answers: Sequence[KnownAnswer], min_side: int) -> Iterator[_Run]:
    """In one batch, or in several if the engine takes fewer images."""
    names = _names(answers)
    images, padding_mask = pad_batch([answer.image for answer in answers], min_side)
    step = min(len(answers), engine.max_batch_size)
    for start in range(0, len(answers), step):
        part = slice(start, start + step)
        outputs = _run(engine, " and ".join(names[part]), images[part], padding_mask[part])
        for name, answer, found in zip(names[part], answers[part], outputs, strict=True):
            yield _Run(f"{name} padded", answer, found)


def _names(answers: Sequence[KnownAnswer]) -> list[str]:
    return [
        f"image {number} ({answer.image.shape[0]}x{answer.image.shape[1]})"
        for number, answer in enumerate(answers, start=1)
    ]


def _run(
    engine: Engine, name: str, images: Uint8Array, padding_mask: BoolArray
) -> list[ImageOutput]:
    try:
        return engine.run(images, padding_mask).rows()
    except EngineFailure as error:
        raise EngineFailure(f"{name} of the known answers: {error}") from error


def _worst(
    answer: KnownAnswer, found: ImageOutput, *, precision: str, classes: Sequence[ClassInfo]
) -> str:
    """The most important wrong detection, in words."""
    expected = answer.expected
    if expected.scores.shape != found.scores.shape:
        return f"expected {len(expected.scores)} detections, got {len(found.scores)}"
    counterparts, _, distances_px = pair(answer, found, precision=precision)
    off = expected.scores * np.minimum(distances_px, max(answer.image.shape))
    off += np.abs(expected.scores - found.scores) * max(answer.image.shape)
    place = int(off.argmax())
    other = int(counterparts[place]) if counterparts[place] >= 0 else place
    size = answer.image.shape[1::-1]
    one, another = (
        f"{_name(classes, output.labels[at])} {output.scores[at]:.3f} at "
        f"{np.round(output.boxes[at] * (*size, *size), 1).tolist()} px"
        for output, at in ((expected, place), (found, other))
    )
    return f"expected {one}, got {another}"


def _name(classes: Sequence[ClassInfo], label: int) -> str:
    return classes[label].name if 0 <= label < len(classes) else f"label {label}"
