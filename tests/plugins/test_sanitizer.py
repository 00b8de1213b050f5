"""How the kernels are run under compute-sanitizer, without a GPU: a stand-in, emulated kernels."""

import shutil
from pathlib import Path

import pytest
import torch

from plugins import build
from tests.gpu.sanitizer import build_program, run_sanitized
from tests.plugins.emulated import Call, needs_compiler, program
from tests.plugins.test_cuda_kernel import PUBLISHED, assert_rounded_once

CALLS = [Call.of(PUBLISHED, dtype) for dtype in (torch.float32, torch.float16)]

# Takes its own options, as compute-sanitizer does, and runs what follows them.
STAND_IN = """#!/bin/sh
echo "$@" > "$(dirname "$0")/arguments"
test "$1 $3 $4" = "--tool --error-exitcode 9" || exit 2
shift 4
"$@"
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compute-sanitizer that finds nothing."""
    path = tmp_path / "bin" / "compute-sanitizer"
    path.parent.mkdir()
    path.write_text(STAND_IN)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    return path


@pytest.fixture
def emulated() -> list[str]:
    return [str(program()), "fused", "forward", "0"]


@needs_compiler
def test_the_program_and_nothing_else_runs_under_the_tool_that_is_asked_for(
    stand_in: Path, emulated: list[str], tmp_path: Path
) -> None:
    made = run_sanitized("racecheck", emulated, calls=CALLS, directory=tmp_path)

    assert (stand_in.parent / "arguments").read_text().split() == [
        *("--tool", "racecheck", "--error-exitcode", "9", *emulated),
        *(str(tmp_path / name) for name in ("calls", "outputs")),
    ]
    assert_rounded_once(made[0], CALLS[0])
    assert_rounded_once(made[1], CALLS[1])


@needs_compiler
def test_what_a_tool_finds_fails_the_test_with_what_it_said(
    stand_in: Path, emulated: list[str], tmp_path: Path
) -> None:
    stand_in.write_text("#!/bin/sh\necho '========= Invalid __global__ read'\nexit 9\n")

    with pytest.raises(AssertionError, match="Invalid __global__ read"):
        run_sanitized("memcheck", emulated, calls=CALLS, directory=tmp_path)


@pytest.mark.usefixtures("stand_in")
def test_a_program_that_fails_by_itself_fails_the_test(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run_sanitized("memcheck", ["false"], calls=CALLS, directory=tmp_path)


def test_a_sanitizer_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "CUDA_TOOLS", tmp_path)

    with pytest.raises(AssertionError, match="compute-sanitizer is not on the path"):
        run_sanitized("memcheck", ["true"], calls=CALLS, directory=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_program_for_a_gpu_compiles(tmp_path: Path) -> None:
    built = build_program(tmp_path, gpu="compute_90")  # machine code: test_cuda_compiled.py

    assert built.stat().st_size > 0
