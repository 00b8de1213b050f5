"""Tests at every start, before serving, whether an engine gives the bundle's known answers."""

import time
from collections.abc import Iterator, Sequence
from shlex import quote
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
from bundle.preprocess import pad_batch_to
from engines.base import Engine, EngineFailure
from engines.trials import Size, Trial, large_trials, small_trials


class WrongAnswers(ValueError):
    """The engine runs, but its answers are not the model's.

    `fault` is the message without the advice on what to run.
    """

    def __init__(self, fault: str, bundle: Bundle) -> None:
        directory = bundle.directory
        super().__init__(
            f"{directory}: {fault}; see all with `python -m service.selftest --bundle "
            f"{quote(str(directory))}`; remove {directory / CACHE_FOLDER} if it exists, "
            f"choose another DETR_ENGINE, or {REMEDY}"
        )
        self.fault = fault


class Outcome(NamedTuple):
    """How an engine did on one known answer."""

    image: str  # which image, its size, and whether alone or in which row of what batch
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


class Checked(NamedTuple):
    """How an engine did on the known answers, and how long it took."""

    outcomes: list[Outcome]
    longest_run_s: float  # of the batches but the first, which initialises the runtime


def self_check(
    engine: Engine,
    bundle: Bundle,
    *,
    max_batch_size: int | None = None,
    at_full_size: bool = False,
) -> Checked:
    """Run an engine on the known answers of its bundle: alone, and in every row of a large batch.

    Args:
        max_batch_size: the most images that will be served in a batch; None for the engine's limit.
        at_full_size: also run what `large_trials` adds, which warms the engine up.

    Raises:
        ValueError: the bundle has no readable known answers.
        EngineFailure: the engine failed on an image; says which.
    """
    answers = read_known_answers(bundle.directory)
    sizes = [(answer.image.shape[0], answer.image.shape[1]) for answer in answers]
    limit = max_batch_size or engine.max_batch_size
    trials = small_trials(sizes, bundle.manifest, max_batch_size=limit)
    if at_full_size:
        trials += large_trials(
            *(sizes, bundle.manifest),
            max_batch_size=limit,
            largest_batches=engine.largest_batches,
        )
    outcomes: list[Outcome] = []
    run_s: list[float] = []
    for trial in trials:
        started = time.perf_counter()
        outputs = _run(engine, trial, answers)
        run_s.append(time.perf_counter() - started)
        names = list(_names(trial, sizes))
        asked = [answers[place] for place in trial.places]
        outcomes += [
            _judge(name, answer, found, engine=engine, classes=bundle.manifest.classes)
            for name, answer, found in zip(names, asked, outputs[: len(asked)], strict=True)
        ]
    return Checked(outcomes, max(run_s[1:]))


def require_known_answers(
    engine: Engine,
    bundle: Bundle,
    *,
    max_batch_size: int | None = None,
    at_full_size: bool = False,
) -> Checked:
    """Run `self_check` and require that it passes.

    Raises:
        ValueError, EngineFailure: as `self_check`.
        WrongAnswers: names the first image that failed, what was expected, what was found, and
            what to run.
    """
    checked = self_check(engine, bundle, max_batch_size=max_batch_size, at_full_size=at_full_size)
    for outcome in checked.outcomes:
        if not outcome.has_passed:
            info = engine.info
            raise WrongAnswers(
                f"{info.runtime} ({info.precision}, graph {info.graph}) does not give the bundle's "
                f"known answers; {outcome.describe()}; {outcome.worst}",
                bundle,
            )
    return checked


def _names(trial: Trial, sizes: Sequence[Size]) -> Iterator[str]:
    """The image in each row, and how it is run."""
    padded = trial.shape.height, trial.shape.width
    for row, place in enumerate(trial.places, start=1):
        height, width = sizes[place]
        where = "alone" if trial.shape.batch == 1 else f"in row {row} of {trial.shape.batch}"
        is_padded = (height, width) != padded
        yield (
            f"image {place + 1} ({height}x{width}) {where}"
            + is_padded * f", padded to {padded[0]}x{padded[1]}"
        )


def _run(engine: Engine, trial: Trial, answers: Sequence[KnownAnswer]) -> list[ImageOutput]:
    batch, height, width = trial.shape
    black = np.zeros((height, width, 3), np.uint8)
    images = [answers[place].image for place in trial.places] or [black] * batch
    try:
        return engine.run(*pad_batch_to(images, height=height, width=width)).rows()
    except EngineFailure as error:
        raise EngineFailure(
            f"known answers, batch of {batch} at {height}x{width}: {error}"
        ) from error


def _judge(
    name: str,
    answer: KnownAnswer,
    found: ImageOutput,
    *,
    engine: Engine,
    classes: Sequence[ClassInfo],
) -> Outcome:
    precision = engine.info.precision
    off = errors(answer, found, precision=precision)
    outcome = Outcome(name, off, TOLERANCES[precision], worst="")
    if outcome.has_passed:
        return outcome
    return outcome._replace(worst=_worst(answer, found, precision=precision, classes=classes))


def _worst(
    answer: KnownAnswer, found: ImageOutput, *, precision: str, classes: Sequence[ClassInfo]
) -> str:
    """The most important wrong detection, in words."""
    expected = answer.expected
    if expected.scores.shape != found.scores.shape:
        return f"detections: expected {len(expected.scores)}, got {len(found.scores)}"
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
