"""The seam of every engine: what goes wrong is an EngineFailure, and numbers are finite."""

import numpy as np
import pytest

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


def test_a_right_output_is_handed_on() -> None:
    engine = guard(FakeEngine())

    output = engine.run(IMAGES, PADDING_MASK)

    assert output.scores.shape == (2, 2)
    assert guard(engine) is engine
    assert engine.info.runtime == "fake"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, -0.1, 1.5])
@pytest.mark.parametrize("field", ["scores", "boxes"])
def test_numbers_that_are_not_from_0_to_1_are_refused(field: str, number: float) -> None:
    engine = guard(Spoiling(field, number))

    with pytest.raises(EngineFailure, match="expected finite scores and boxes"):
        engine.run(IMAGES, PADDING_MASK)


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(3), KeyError("x"), RuntimeError("no")])
def test_whatever_an_engine_raises_is_an_engine_failure(error: BaseException) -> None:
    engine = guard(Raising(error))

    with pytest.raises(EngineFailure, match=f"raised {type(error).__name__} on") as caught:
        engine.run(IMAGES, PADDING_MASK)

    assert caught.value.__cause__ is error


def test_what_an_engine_says_itself_is_left_as_it_is() -> None:
    engine = guard(Raising(EngineFailure("no memory")))

    with pytest.raises(EngineFailure, match=r"^no memory$"):
        engine.run(IMAGES, PADDING_MASK)


def test_ctrl_c_is_not_a_failure_of_the_engine() -> None:
    with pytest.raises(KeyboardInterrupt):
        guard(Raising(KeyboardInterrupt())).run(IMAGES, PADDING_MASK)
