"""The kernels on a GPU under compute-sanitizer: a small program, built before, and nothing else.

Neither Python nor TensorRT runs under it: they launch thousands of kernels that are not ours, each
of them many times slower than alone.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from plugins.build import cuda_tool, nvcc
from tests.plugins.emulated import BACKWARD, CORE, KERNEL, Call, outputs

SOURCE = Path(__file__).parent / "run_cases.cu"
FOUND = 9  # exit status where the sanitizer found something


def build_program(directory: Path, *, gpu: str = "native") -> Path:
    """The program that runs calls and their gradients; a warning of nvcc is an error.

    It is for a GPU: this machine's, or "sm_90", or "compute_90" without machine code.

    Raises:
        AssertionError: there is no nvcc, or it failed; says which.
    """
    compiler = nvcc()
    assert compiler, "nvcc is not on the path; it comes with the CUDA toolkit"
    program = directory / "run_cases"
    options = ["-std=c++17", "-O3", "-lineinfo", f"--gpu-architecture={gpu}", "-I", str(CORE)]
    options += ["--Werror=all-warnings"]
    command = [compiler, *options, str(KERNEL), str(BACKWARD), str(SOURCE), "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return program


def run_sanitized(
    tool: str, program: Sequence[str], *, calls: Sequence[Call], directory: Path
) -> list[Tensor]:
    """The outputs of the calls, run by a program under a tool of compute-sanitizer.

    Args:
        tool: "memcheck", "racecheck" or "synccheck".
        program: a command, to which the files for calls and outputs are added.
        calls: small ones; each is launched once.
        directory: takes the files.

    Raises:
        AssertionError: there is no compute-sanitizer, or it or the program found something; the
            message is what they said.
    """
    sanitizer = cuda_tool("compute-sanitizer")
    assert sanitizer, "compute-sanitizer is not on the path; it comes with the CUDA toolkit"
    source, target = directory / "calls", directory / "outputs"
    source.write_bytes(b"".join(call.to_bytes() for call in calls))
    options = ["--tool", tool, "--error-exitcode", str(FOUND)]
    command = [sanitizer, *options, *program, str(source), str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    return outputs(calls, target.read_bytes())
