"""Ctrl-C shows what has been measured of a training step."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.bench_train import OPENERS, STEP_PARTS, Task, measure

TASK = Task("base", 64, 96, batch_size=2, threads=1, device="cpu")


class InterruptedProcess:
    """A model whose steps take a second for each part; Ctrl-C is pressed in the fourth of all."""

    num_steps = 0

    def __init__(self, opener: Callable[..., Any], name: str, task: Task) -> None:
        self.about = 40_000_000

    def ask(self) -> dict[str, float]:
        InterruptedProcess.num_steps += 1
        if InterruptedProcess.num_steps == 2 * len(OPENERS):
            signal.raise_signal(signal.SIGINT)
        return dict.fromkeys(STEP_PARTS, 1.0)

    def close(self) -> None:
        """Nothing is left running."""


def test_a_measurement_that_is_interrupted_shows_its_whole_rounds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    is_whole = measure(TASK, rounds=5, start=InterruptedProcess)  # type: ignore[arg-type]

    shown = capsys.readouterr()
    assert not is_whole
    assert "base, 2 x 64 x 96, cpu, 1 rounds" in shown.out
    for name in OPENERS:
        assert f"| {name} | 40.00 | 4.00 (4.00 - 4.00) | 0.500 | 1.00 |" in shown.out
    assert "round 2/5: " in shown.err
    assert "round 3/5: " not in shown.err
