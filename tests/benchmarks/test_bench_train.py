"""What has been measured of a training step is shown, whoever fails or presses Ctrl-C."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.bench_train import NAMES, OURS, PLAIN, STEP_PARTS, Task, measure

TASK = Task("base", 64, 96, batch_size=2, threads=1, device="cpu")


class InterruptedProcess:
    """A model whose steps take a second for each part; Ctrl-C is pressed in the fourth of all."""

    num_steps = 0

    def __init__(self, opener: Callable[..., Any], name: str, task: Task) -> None:
        self.about = 40_000_000

    def ask(self) -> dict[str, float]:
        InterruptedProcess.num_steps += 1
        if InterruptedProcess.num_steps == 2 * len(NAMES["cpu"]):
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
    assert "base, 2 x 64 x 96, cpu, fp32, 1 rounds" in shown.out
    for name in NAMES["cpu"]:
        assert f"| {name} | 40.00 | 4.000 (4.000 - 4.000) | 0.500 | 1.00 |" in shown.out
    assert "round 2/5: " in shown.err
    assert "round 3/5: " not in shown.err


class GpuProcess:
    """On a GPU: Hugging Face is not installed, Triton's kernels fail, plain PyTorch is slow."""

    def __init__(self, opener: Callable[..., Any], name: str, task: Task) -> None:
        if name == "Hugging Face":
            raise EOFError
        self.about = 40_000_000
        self._name = name

    def ask(self) -> dict[str, float]:
        if "Triton" in self._name:
            raise EOFError
        return dict.fromkeys(STEP_PARTS, 0.75 if self._name == PLAIN else 0.25)

    def close(self) -> None:
        """Nothing is left running."""


def test_on_a_gpu_the_table_says_how_many_times_faster_than_plain_pytorch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = TASK._replace(device="cuda", precision="bf16")

    is_whole = measure(task, rounds=2, start=GpuProcess)  # type: ignore[arg-type]

    shown = capsys.readouterr()
    assert is_whole
    assert "base, 2 x 64 x 96, cuda, bf16, 2 rounds" in shown.out
    assert "| wall s/step (spread) | images/s | x plain PyTorch | forward, s |" in shown.out
    assert f"| {OURS} | 40.00 | 1.000 (1.000 - 1.000) | 2.000 | 3.00 |" in shown.out
    assert "Ours: 3.00 times as fast as plain PyTorch; at least 1.5 is wanted." in shown.out
    assert "Hugging Face cannot be opened and is left out" in shown.err
    assert "detr-serve, Triton has ended and is left out" in shown.err
