"""A process that is measured outlives Ctrl-C, and ends when it is told to."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from itertools import count

import pytest

from benchmarks.contestant_process import ContestantProcess


def open_counter(first: int) -> tuple[Callable[[], int], int]:
    """A function that counts, and the process it is in."""
    return count(first).__next__, os.getpid()


def open_nothing() -> tuple[Callable[[], int], int]:
    raise ValueError("no such engine")


def test_a_contestant_answers_after_ctrl_c_and_ends_when_it_is_closed() -> None:
    contestant = ContestantProcess(open_counter, 5)

    before = contestant.ask()
    os.kill(contestant.about, signal.SIGINT)
    after = contestant.ask()
    contestant.close()

    assert (before, after) == (5, 6)
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_contestant_that_cannot_be_opened_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EOFError):
        ContestantProcess(open_nothing)

    assert "no such engine" in capfd.readouterr().err
    assert multiprocessing.active_children() == []
