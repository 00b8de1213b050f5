"""What export is doing, and how it is ended."""

import signal
from contextlib import suppress

import pytest

from export.stage import ended_by_ctrl_c, stage


@ended_by_ctrl_c()
def export_by_a_library_that_fails_of_it() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ValueError("a library failed") from error


@ended_by_ctrl_c()
def export_by_a_library_that_swallows_it(begun: list[str]) -> None:
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with stage("what comes next"):
        begun.append("what comes next")


def test_ctrl_c_is_told_from_the_error_that_a_library_makes_of_it() -> None:
    with pytest.raises(KeyboardInterrupt):
        export_by_a_library_that_fails_of_it()


def test_ctrl_c_that_a_library_swallows_ends_the_export_at_its_next_stage() -> None:
    begun: list[str] = []

    with pytest.raises(KeyboardInterrupt):
        export_by_a_library_that_swallows_it(begun)

    assert begun == []


def test_other_errors_stay_what_they_are_and_ctrl_c_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)

    with pytest.raises(ValueError, match="a model is wrong"), ended_by_ctrl_c():
        raise ValueError("a model is wrong")

    assert signal.getsignal(signal.SIGINT) is before
