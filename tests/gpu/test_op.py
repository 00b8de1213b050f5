"""The plugin in engines of TensorRT against the reference in float64, and under the sanitizers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.one_node import Gpu, named, plan_of_node, run_plan
from model.network.ops.reference import ms_deform_attn_reference
from tests.plugins.test_cuda_kernel import DTYPES, TABLE

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]

# Beside one rounding of the output: sums in float32 of values in [-0.5, 0.5], with the GPU's own
# exp and division. The emulated kernels stay below 2.5e-7; a wrong tap costs 1e-2.
FLOAT32_ERROR = 5e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_the_plugin_equals_the_reference(
    gpu: Gpu, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    inputs = named(TABLE[name].inputs(dtype))
    value, shapes, *others = inputs.values()
    sizes = [(int(height), int(width)) for height, width in shapes]
    expected = ms_deform_attn_reference(value.double(), sizes, *(t.double() for t in others))
    output = torch.full(expected.shape, torch.nan, dtype=dtype)

    plan = plan_of_node(gpu, inputs, output_shape=tuple(expected.shape), directory=tmp_path)
    run_plan(gpu, plan, inputs=inputs, output=output)

    unit = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    difference = (output.double() - expected).abs()
    assert (difference <= expected.abs() * unit + FLOAT32_ERROR).all(), difference.max()


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    assert sanitizer, "compute-sanitizer is not on the path; it comes with the CUDA toolkit"
    test = [*(sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--timeout", "1700", "-W"),
            *("default", "tests/gpu/test_op.py", "-k", "equals_the_reference")]  # fmt: skip
    options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    if tool == "memcheck":  # errors that TensorRT provokes and handles are its own
        options += ["--report-api-errors", "no"]

    result = subprocess.run([sanitizer, *options, *test], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
