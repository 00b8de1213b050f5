"""The seam of every engine: what goes wrong is an EngineFailure, and numbers are finite."""

from pathlib import Path

import numpy as np
import pytest

from bundle.manifest import Bundle, Manifest
from bundle.postprocess import RawOutput
from engines.base import EngineFailure
from engines.guard import guard
from tests.fakes import FakeEngine

IMAGES, PADDING_MASK = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.bool_)


class Raising(FakeEngine):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def run(self, *_: object) -> RawOutput:
        raise self._error


class Spoiling(FakeEngine):
    """One number of the second image is another."""

    def __init__(self, field: str, number: float) -> None:
        super().__init__()
        self._field, self._number = field, number

    def run(self, *batch: np.ndarray) -> RawOutput:
        output = super().run(*batch)
        getattr(output, self._field)[1].flat[-1] = self._number
        return output


class Forgetting(FakeEngine):
    """One part of the output lacks the last image."""

    def __init__(self, field: str) -> None:
        super().__init__()
        self._field = field

    def run(self, *batch: np.ndarray) -> RawOutput:
        output = super().run(*batch)
        return output._replace(**{self._field: getattr(output, self._field)[:-1]})


@pytest.fixture
def manifest(toy_bundle: Path) -> Manifest:
    """Of a bundle with three classes."""
    return Bundle.load(toy_bundle).manifest


def test_a_right_output_is_handed_on(manifest: Manifest) -> None:
    engine = guard(FakeEngine(), manifest)

    output = engine.run(IMAGES, PADDING_MASK)

    assert output.scores.shape == (2, 2)
    assert guard(engine, manifest) is engine
    assert engine.info.runtime == "fake"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, -0.1, 1.5])
@pytest.mark.parametrize("field", ["scores", "boxes"])
def test_numbers_that_are_not_from_0_to_1_are_refused(
    field: str, number: float, manifest: Manifest
) -> None:
    engine = guard(Spoiling(field, number), manifest)

    with pytest.raises(EngineFailure, match="expected finite scores and boxes"):
        engine.run(IMAGES, PADDING_MASK)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_is_refused(label: int, manifest: Manifest) -> None:
    engine = guard(Spoiling("labels", label), manifest)

    with pytest.raises(EngineFailure, match="expected labels from 0 to 2, got"):
        engine.run(IMAGES, PADDING_MASK)


@pytest.mark.parametrize("field", ["scores", "labels", "boxes"])
def test_an_image_without_an_answer_is_refused(field: str, manifest: Manifest) -> None:
    engine = guard(Forgetting(field), manifest)

    with pytest.raises(EngineFailure, match=f"each image, 2 in all, got .*1 of {field}"):
        engine.run(IMAGES, PADDING_MASK)


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(3), KeyError("x"), RuntimeError("no")])
def test_whatever_an_engine_raises_is_an_engine_failure(
    error: BaseException, manifest: Manifest
) -> None:
    engine = guard(Raising(error), manifest)

    with pytest.raises(EngineFailure, match=f"raised {type(error).__name__} on") as caught:
        engine.run(IMAGES, PADDING_MASK)

    assert caught.value.__cause__ is error


def test_what_an_engine_says_itself_is_left_as_it_is(manifest: Manifest) -> None:
    engine = guard(Raising(EngineFailure("no memory")), manifest)

    with pytest.raises(EngineFailure, match=r"^no memory$"):
        engine.run(IMAGES, PADDING_MASK)


def test_ctrl_c_is_not_a_failure_of_the_engine(manifest: Manifest) -> None:
    with pytest.raises(KeyboardInterrupt):
        guard(Raising(KeyboardInterrupt()), manifest).run(IMAGES, PADDING_MASK)
