"""The plugin in engines of TensorRT against the reference in float64; kernels under sanitizers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.one_node import Gpu, named, plan_of_node, run_plan
from model.network.ops.reference import ms_deform_attn_reference
from plugins.build import cuda_tool, nvcc
from tests.gpu.sanitizer import build_program, run_sanitized
from tests.plugins.emulated import Call
from tests.plugins.test_cuda_kernel import DTYPES, TABLE, exact

pytestmark = pytest.mark.gpu

# Beside one rounding of the output: sums in float32 of values in [-0.5, 0.5], with the GPU's own
# exp and division. The emulated kernels stay below 2.5e-7; a wrong tap costs 1e-2.
FLOAT32_ERROR = 5e-6


def assert_close(output: Tensor, expected: Tensor) -> None:
    """The output is off by one rounding to its type, and by FLOAT32_ERROR."""
    unit = 0 if output.dtype == torch.float32 else torch.finfo(output.dtype).eps / 2
    difference = (output.double() - expected).abs()
    assert (difference <= expected.abs() * unit + FLOAT32_ERROR).all(), difference.max()


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

    assert_close(output, expected)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool, found in (("nvcc", nvcc()), ("compute-sanitizer", cuda_tool("compute-sanitizer"))):
        if found is None:
            pytest.skip(f"left out, without {tool}: the kernels under the sanitizers")
    return build_program(tmp_path_factory.mktemp("program"))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_the_sanitizer_finds_nothing_and_disturbs_nothing(
    program: Path, tmp_path: Path, tool: str
) -> None:
    calls = [Call.of(case, dtype) for case in TABLE.values() for dtype in DTYPES]

    made = run_sanitized(tool, [str(program)], calls=calls, directory=tmp_path)

    for call, output in zip(calls, made, strict=True):
        assert_close(output, exact(call))
