"""Work done ahead in processes: results in order, and an end in one line with no process left."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from model.data.workers import LoadingFailed, work_ahead

ROOT = Path(__file__).parents[3]
BROKEN = 3  # the item at which work goes wrong


def square(item: int) -> int:
    return item * item


class Untold(Exception):
    """Cannot be pickled, and its message cannot be read."""

    def __init__(self, code: int, *, reason: object) -> None:
        self.code = code
        self.reason = (reason, lambda: code)

    def __str__(self) -> str:
        return self.reason  # type: ignore[return-value]


def fail(error: BaseException, item: int) -> int:
    if item == BROKEN:
        raise error
    return item


def fill_shared_memory(item: int) -> tuple[int, torch.Tensor]:
    """From `BROKEN` on, the process may make no file as large as its result."""
    if item == BROKEN:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    return item, torch.zeros(10_000)


def kill(item: int) -> int:
    if item == BROKEN:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def end_when_told(told: int, item: int) -> int:
    """The first two results; who is to work on a later one is killed once told so."""
    if item > 1:
        os.read(told, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_order(num_workers):
    results = list(work_ahead(square, range(10), num_workers=num_workers))

    assert results == [item * item for item in range(10)]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a.png is damaged"), r"^a\.png is damaged$"),
        (ValueError("a.png\n  is damaged\n"), r"^a\.png; is damaged$"),
        (FileNotFoundError(2, "No such file", "a.png"), r"No such file.*a\.png"),
        (MemoryError("1 GB"), r"^no memory left to load images \(1 GB\): lower num_workers"),
        (UnicodeDecodeError("ascii", b"x", 0, 1, "odd"), "odd"),
        (KeyError("bbox"), r"^KeyError: 'bbox' \(.*test_workers\.py, line \d+\)$"),
        (KeyError(("a", 1), {"b": None}), r"^KeyError: \(\('a', 1\), \{'b': None\}\) \(.*py, line"),
        (KeyError(), r"^KeyError \(.*test_workers\.py, line \d+\)$"),
        (ValueError(), r"^ValueError \(.*test_workers\.py, line \d+\)$"),
        (MemoryError(), "^no memory left to load images: lower num_workers"),
        (ModuleNotFoundError("No module named 'x'"), r"^ModuleNotFoundError: No .* 'x' \(.*, line"),
        (
            SyntaxError("invalid", ("x.py", 7, 1, "def f(;")),
            r'^File "x\.py", line 7; def f\(;.*, line',
        ),
        (Untold(3, reason="x"), r"Untold: <exception str\(\) failed> \(.*, line"),
        (StopIteration(4), r"^StopIteration: 4 \(.*, line"),
        (SystemExit(0), r"^SystemExit: 0 \(.*, line"),
    ],
)
def test_an_exception_is_one_line_after_the_results_before_it(num_workers, error, message):
    results = work_ahead(partial(fail, error), range(10), num_workers=num_workers)

    assert [next(results) for _ in range(BROKEN)] == [0, 1, 2]
    with pytest.raises(LoadingFailed, match=message):
        next(results)
    assert multiprocessing.active_children() == []


def test_no_shared_memory_left_is_one_line_with_advice():
    results = work_ahead(fill_shared_memory, range(10), num_workers=1)

    assert [next(results)[0] for _ in range(BROKEN)] == [0, 1, 2]
    with pytest.raises(
        LoadingFailed, match=r"no memory .*shared memory: .*docker run --shm-size.*batch_size$"
    ):
        next(results)
    assert multiprocessing.active_children() == []


def test_a_killed_process_is_one_line_with_advice():
    results = work_ahead(kill, range(10), num_workers=2)

    with pytest.raises(LoadingFailed, match=r"has ended \(.*\), most often because memory ran out"):
        list(results)
    assert multiprocessing.active_children() == []


def test_a_process_that_is_killed_does_not_disturb_the_step_that_runs():
    told, tell = os.pipe()
    results = work_ahead(partial(end_when_told, told), range(10), num_workers=2)
    next(results)
    (victim, _) = [int(child.pid or 0) for child in multiprocessing.active_children()]

    os.write(tell, b"12")
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)  # a handler would raise here

    del results
    assert multiprocessing.active_children() == []


def test_processes_end_with_whoever_no_longer_wants_results():
    results = work_ahead(square, range(1000), num_workers=2)
    next(results)
    num_before = len(multiprocessing.active_children())

    del results

    assert num_before == 2
    assert multiprocessing.active_children() == []


def test_signals_to_the_process_group_reach_no_worker_not_even_one_that_is_starting():
    code = """
import os, signal, subprocess
from model.data.workers import work_ahead
parent, stops = os.getpid(), set()
def stop(number, frame):
    stops.add(number)
    os.getpid() == parent or os.write(2, b"reached a worker")
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, stop)
def signal_all():
    os.killpg(0, signal.SIGINT)
    os.killpg(0, signal.SIGHUP)
os.register_at_fork(after_in_child=signal_all)
results = work_ahead(abs, range(100), num_workers=2)
next(results)
subprocess.run(["sh", "-c", "kill -TERM 0"])
print(len(list(results)), len(stops))
"""

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=120,
    )

    assert (done.stdout, done.stderr) == ("99 3\n", "")


# Run first where a process is forked: the second worker starts only after it was told to end.
START_LATE = """
import os, signal
starts = []
def wait_for_end():
    if len(starts) == 2:
        while signal.SIGTERM not in signal.sigpending():
            signal.sigtimedwait([], 0.01)
os.register_at_fork(before=lambda: starts.append(None), after_in_child=wait_for_end)
"""


@pytest.mark.parametrize("before", ["", START_LATE], ids=["started", "still starting"])
def test_a_process_that_ends_in_an_error_leaves_none_behind(before):
    code = """
import multiprocessing
from model.data.workers import work_ahead
results = work_ahead(abs, range(100), num_workers=2)
next(results)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
raise KeyError("a bug, whose trace keeps the results alive")
"""

    done = subprocess.run(
        [sys.executable, "-c", before + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 1
    assert [Path("/proc", pid).exists() for pid in done.stdout.split()] == [False, False]
