"""Signals as requests to stop, in separate processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model.training.interrupt import Interrupted, StopRequest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.usefixtures("terminal_signals")
def test_the_first_signal_is_a_request(number: signal.Signals, status: int) -> None:
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), number)

        assert stop.is_requested
        assert stop.exit_status == status
        with pytest.raises(Interrupted):
            stop.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.usefixtures("terminal_signals")
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)

    with StopRequest() as stop:
        os.kill(os.getpid(), number)

    assert not stop.is_requested
    assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.usefixtures("terminal_signals")
def test_a_terminal_that_closes_may_say_so_twice() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)

        assert stop.exit_status == 129


def test_signals_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with StopRequest():
        pass

    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_the_process_at_once() -> None:
    code = """
import os, signal
from model.training.interrupt import StopRequest
with StopRequest():
    os.kill(os.getpid(), signal.SIGINT)
    print("first", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("second", flush=True)
"""

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "first\n"
