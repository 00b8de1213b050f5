"""What `make test-gpu` and `make bench-gpu` run, without a GPU: they fail, with one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_without_gpu(*command: str) -> subprocess.CompletedProcess[str]:
    """A command of Python, which sees no GPU here either."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_tests_of_the_gpu_fail_without_one_and_skip_nothing() -> None:
    result = run_without_gpu("pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu")

    assert result.returncode == 1
    said = [line for line in result.stdout.splitlines() if "nothing to run these tests on" in line]
    assert len(said) == 1
    assert "check `nvidia-smi`" in said[0]
    assert "skipped" not in result.stdout


@pytest.mark.slow
def test_tests_of_the_gpu_are_no_part_of_the_others() -> None:
    result = run_without_gpu(
        "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/gpu"
    )

    assert "no tests collected" in result.stdout


def test_the_benchmark_of_the_gpu_fails_without_one() -> None:
    result = run_without_gpu("benchmarks.bench_gpu")

    assert result.returncode == 1
    assert result.stderr.startswith("there is nothing to measure on: ")
    assert result.stderr.count("\n") == 1
