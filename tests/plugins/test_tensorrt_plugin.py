"""The plugin's class on a CPU: driven as TensorRT drives it, with its kernels emulated."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from plugins.build import tensorrt_headers
from tests.ops.cases import CASES, OpCase
from tests.plugins.emulated import Call, needs_compiler, outputs
from tests.plugins.tensorrt_plugin import emulated_plugin, host
from tests.plugins.test_cuda_kernel import DTYPES, assert_rounded_once

pytestmark = needs_compiler

DRIVE = """
import ctypes, sys
host, plugin, version, calls, outputs = sys.argv[1:]
arguments = (plugin.encode(), int(version), calls.encode(), outputs.encode())
sys.exit(ctypes.CDLL(host).runPlugin(*arguments))
"""
TABLE = [*CASES, OpCase("one channel", heads=1, head_dim=1, queries=40)]
TOO_MANY_LEVELS = OpCase("levels beyond the limit", shapes=((1, 1),) * 65)
WELL = "onShapeChange 0 enqueue 0"


class Driven(NamedTuple):
    """What the plugin answered to a list of calls."""

    creator: str
    answers: list[str]
    outputs: list[Tensor]
    errors: str  # what it wrote to standard error


def headers_version() -> int:
    """The major version of TensorRT whose headers the plugin is compiled against."""
    headers = tensorrt_headers()
    assert headers is not None
    text = (headers / "NvInferVersion.h").read_text()
    match = re.search(r"^#define (?:NV_TENSORRT|TRT)_MAJOR\w* (\d+)", text, flags=re.M)
    assert match is not None
    return int(match[1])


def drive(calls: list[Call], directory: Path, version: int) -> Driven:
    """Run calls with the plugin in a TensorRT that says it is of this major version."""
    source, target = directory / "calls", directory / "outputs"
    source.write_bytes(b"".join(call.to_bytes() for call in calls))
    arguments = [str(host()), str(emulated_plugin()), str(version), str(source), str(target)]
    result = subprocess.run(
        [sys.executable, "-c", DRIVE, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    creator, *answers = result.stdout.splitlines()
    return Driven(creator, answers, outputs(calls, target.read_bytes()), result.stderr)


@pytest.mark.slow
def test_the_plugin_computes_what_the_reference_does(tmp_path: Path) -> None:
    calls = [Call.of(case, dtype) for case in TABLE for dtype in DTYPES]

    driven = drive(calls, tmp_path, headers_version())

    assert driven.creator == "1 MSDeformAttn 1 '' 0"
    assert driven.answers == [WELL] * len(calls)
    for output, call in zip(driven.outputs, calls, strict=True):
        assert_rounded_once(output, call)


def test_what_is_wrong_goes_to_the_logger_of_tensorrt(tmp_path: Path) -> None:
    call = Call.of(TOO_MANY_LEVELS, torch.float32)

    driven = drive([call], tmp_path, headers_version())

    assert driven.answers[0].startswith(
        "logged MSDeformAttn: unsupported: more than 64 levels: value (2, 65, 2, 4), "
    )
    assert driven.answers[-1] == "refused configuration"


def test_what_is_wrong_goes_to_standard_error_where_the_logger_is_of_another_version(
    tmp_path: Path,
) -> None:
    call = Call.of(TOO_MANY_LEVELS, torch.float32)

    driven = drive([call], tmp_path, headers_version() + 1)

    assert driven.answers == ["refused configuration"]
    assert "MSDeformAttn: unsupported: more than 64 levels" in driven.errors


def test_what_cuda_refuses_is_returned_and_named(tmp_path: Path) -> None:
    call = Call.of(CASES[0], torch.float32)._replace(offsets_shift=1)

    driven = drive([call], tmp_path, headers_version())

    assert driven.answers == [
        "logged MSDeformAttn: CUDA: misaligned address",
        "onShapeChange 0 enqueue 1",
    ]
