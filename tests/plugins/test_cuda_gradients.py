"""What PyTorch loads for a GPU, with emulated kernels, against the reference in float64."""

import ctypes
import itertools
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.network.ops.reference import ms_deform_attn_reference
from plugins.cuda_kernels import CudaKernels
from tests.ops.cases import CASES, PYRAMID, OpCase
from tests.ops.interpreted import InterpretedKernels
from tests.plugins.emulated import (
    BACKWARD,
    Call,
    barriers,
    gradients_program,
    needs_compiler,
)

pytestmark = needs_compiler

TABLE = {
    case.name: case
    for case in (
        # Each thread of a GPU takes microseconds here, so of large cases there is only one a kind.
        *(case for case in CASES if case.heads < 8 or case.queries < 10),
        OpCase("published sizes, boxes", batch=1, heads=2, head_dim=32, points=4, queries=9,
               shapes=PYRAMID, reference_width=4),
        OpCase("infinite, wide head", batch=1, heads=2, head_dim=32, points=4, queries=9,
               shapes=PYRAMID, has_infinite_border=True),
        OpCase("more samples than a chunk", head_dim=16, points=5, shapes=((3, 4), (2, 1)) * 10),
    )
}  # fmt: skip
PUBLISHED = TABLE["published sizes"]
HALVES = ("published sizes", "odd head width", "more samples than a chunk", "infinite, boxes")
ALL_TYPES = [(name, torch.float32) for name in TABLE] + [
    (name, dtype) for name in HALVES for dtype in (torch.float16, torch.bfloat16)
]

# Sums in float32: largest errors that were seen, 1e-6 in parts of the largest number of a tensor.
FLOAT32_ERROR = 2e-6


@pytest.fixture
def _threads_in_order(path: Path) -> Iterator[None]:
    yield
    set_order(path, is_forward=True)
    leave_out(path, 0)


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def set_order(path: Path, *, is_forward: bool) -> None:
    """Whether threads run first to last or last to first between barriers."""
    ctypes.CDLL(str(path)).setOrder(int(is_forward))


def leave_out(path: Path, line: int) -> None:
    """Let threads no longer wait at the barrier on a line of a source, or at all again if 0."""
    ctypes.CDLL(str(path)).leaveOut(line)


def flat(shapes: list[tuple[int, int]]) -> list[int]:
    return list(itertools.chain.from_iterable(shapes))


def output_gradient(case: OpCase, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (case.batch, case.queries, case.heads * case.head_dim)
    return torch.randn(shape, generator=generator).to(dtype)


def computed(
    kernels: CudaKernels | InterpretedKernels, case: OpCase, dtype: torch.dtype
) -> list[Tensor]:
    """Output and gradients of the kernels."""
    value, shapes, *others = case.inputs(dtype)
    output = kernels.forward(value, flat(shapes), *others)
    gradient = output_gradient(case, dtype)
    return [output, *kernels.backward(gradient, value, flat(shapes), *others)]


def exact(case: OpCase, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of the reference in float64, for the same inputs."""
    value, shapes, *others = case.inputs(dtype)
    inputs = [tensor.double().requires_grad_() for tensor in (value, *others)]
    output = ms_deform_attn_reference(inputs[0], shapes, *inputs[1:])
    gradient = output_gradient(case, dtype).double()
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def is_rounded_once(result: Tensor, expected: Tensor) -> bool:
    """Whether a result is what sums in float32 give, rounded once to its type."""
    assert result.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    unit = 0 if result.dtype == torch.float32 else torch.finfo(result.dtype).eps / 2
    bound = expected.abs() * unit + FLOAT32_ERROR * scale
    return bool(((result.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize(("name", "dtype"), ALL_TYPES, ids=str)
def test_output_and_gradients_equal_the_reference(
    kernels: CudaKernels, name: str, dtype: torch.dtype
) -> None:
    results = computed(kernels, TABLE[name], dtype)

    value, _, *others = TABLE[name].inputs(dtype)
    assert [r.dtype for r in results] == [value.dtype, value.dtype, *(t.dtype for t in others)]
    assert all(map(is_rounded_once, results, exact(TABLE[name], dtype)))


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["published sizes", "odd head width", "no queries"])
def test_deterministic_gradients_equal_the_reference(
    kernels: CudaKernels, name: str, dtype: torch.dtype
) -> None:
    results = computed(kernels, TABLE[name], dtype)

    assert all(map(is_rounded_once, results, exact(TABLE[name], dtype)))


@pytest.mark.usefixtures("_threads_in_order")
@pytest.mark.parametrize("is_deterministic", [False, True])
def test_the_order_of_threads_changes_no_bit_in_deterministic_mode_only(
    kernels: CudaKernels, path: Path, is_deterministic: bool
) -> None:
    torch.use_deterministic_algorithms(is_deterministic)
    results = computed(kernels, PUBLISHED, torch.float32)

    set_order(path, is_forward=False)
    reversed_results = computed(kernels, PUBLISHED, torch.float32)
    torch.use_deterministic_algorithms(False)

    assert all(map(is_rounded_once, reversed_results, exact(PUBLISHED, torch.float32)))
    equal = list(map(torch.equal, results, reversed_results))
    assert equal == [True, is_deterministic, True, True, True]


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("strange", [torch.inf, -torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_is_not_lost_in_deterministic_mode(
    kernels: CudaKernels, strange: float
) -> None:
    value, shapes, *others = PUBLISHED.inputs()
    gradient = output_gradient(PUBLISHED, torch.float32)
    gradient[0, 0, 0] = strange

    of_value = kernels.backward(gradient, value, flat(shapes), *others)[0]

    assert of_value.isnan().any()


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("size", [0.0, 2.0**-60, 2.0**60])
def test_deterministic_gradients_of_any_size_keep_their_digits(
    kernels: CudaKernels, size: float
) -> None:
    value, shapes, *others = TABLE["one level"].inputs()
    gradient = output_gradient(TABLE["one level"], torch.float32)
    expected = kernels.backward(gradient, value, flat(shapes), *others)[0]

    scaled = kernels.backward(gradient * size, value, flat(shapes), *others)[0]

    assert torch.equal(scaled, expected * size)


@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("width", [2, 4])
def test_a_sample_that_is_nowhere_gets_no_gradient_and_shows_in_that_of_its_box(
    kernels: CudaKernels, width: int, strange: float
) -> None:
    case = replace(TABLE["one level"], reference_width=width)
    value, shapes, reference, offsets, logits = case.inputs()
    outside = offsets.clone()
    outside[:, ::2, :, 0, 2, 0] = 1e4
    offsets[:, ::2, :, 0, 2, 0] = strange
    gradient = output_gradient(case, torch.float32)

    results = kernels.backward(gradient, value, flat(shapes), reference, offsets, logits)

    expected = kernels.backward(gradient, value, flat(shapes), reference, outside, logits)
    expected[1][:, ::2, 0, 2:3] += 0 * strange  # as in plain PyTorch
    torch.testing.assert_close(results, expected, rtol=0, atol=0, equal_nan=True)


def test_gradients_of_reference_points_are_left_out_where_nobody_wants_them(
    kernels: CudaKernels,
) -> None:
    value, shapes, *others = TABLE["two levels, boxes"].inputs()
    gradient = output_gradient(TABLE["two levels, boxes"], torch.float32)

    without = kernels.backward(gradient, value, flat(shapes), *others, with_reference_points=False)

    complete = kernels.backward(gradient, value, flat(shapes), *others)
    assert without[1].numel() == 0
    assert all(torch.equal(without[i], complete[i]) for i in (0, 2, 3))


def test_offsets_wider_than_values_keep_their_digits(kernels: CudaKernels) -> None:
    value, shapes, *others = TABLE["two levels, points"].inputs()
    half = value.half()

    output = kernels.forward(half, flat(shapes), *others)
    gradients = kernels.backward(output, half, flat(shapes), *others)

    expected = kernels.forward(half.float(), flat(shapes), *others)
    assert torch.equal(output, expected.half())
    assert [g.dtype for g in gradients] == [torch.float16, *(3 * [torch.float32])]


def test_inputs_may_have_any_memory_layout(kernels: CudaKernels) -> None:
    value, shapes, *others = PUBLISHED.inputs()
    scattered = value.transpose(1, 2).contiguous().transpose(1, 2)
    gradient = output_gradient(PUBLISHED, torch.float32)[:, :, :1].expand(-1, -1, 256)

    results = kernels.backward(gradient, scattered, flat(shapes), *others)

    expected = kernels.backward(gradient.contiguous(), value, flat(shapes), *others)
    assert all(map(torch.equal, results, expected))


def test_a_call_that_makes_no_sense_is_refused_with_the_reason(kernels: CudaKernels) -> None:
    value, shapes, *others = TABLE["two levels, points"].inputs()
    many = OpCase("levels beyond the limit", shapes=((1, 1),) * 65).inputs()

    with pytest.raises(ValueError, match="levels that do not add up to the tokens"):
        kernels.forward(value[:, 1:], flat(shapes), *others)
    with pytest.raises(ValueError, match="a level without a pixel"):
        kernels.forward(value, [0, 5, *flat(shapes)[2:]], *others)
    with pytest.raises(ValueError, match="more than 64 levels"):
        kernels.forward(many[0], flat(many[1]), *many[2:])


def float32_only(directory: Path, source: str) -> Path:
    """A copy of the gradients' source without the other types, which compiles sooner."""
    for dtype in ("__half", "__nv_bfloat16"):
        source = source.replace(f"return launch<{dtype}>(", "return launch<float>(")
    copy = directory / BACKWARD.name
    copy.write_text(source)
    return copy


# The third of four barriers is not among them: it orders memory only. Threads have already met at
# the shuffles before it.
@pytest.mark.usefixtures("_threads_in_order")
@pytest.mark.parametrize(
    ("barrier", "line"), [found for i, found in enumerate(barriers(BACKWARD)) if i != 2]
)
def test_a_barrier_that_is_missing_is_noticed(
    kernels: CudaKernels, path: Path, barrier: str, line: int
) -> None:
    leave_out(path, line)
    case = TABLE["more samples than a chunk"]

    rights: list[bool] = []
    for is_forward in (False, True):  # in the other order, the first run leaves its levels behind
        set_order(path, is_forward=is_forward)
        rights += map(
            is_rounded_once, computed(kernels, case, torch.float32), exact(case, torch.float32)
        )

    assert not all(rights)


@pytest.mark.slow
def test_nothing_is_touched_outside_of_the_tensors(tmp_path: Path) -> None:
    names = ("two levels, boxes", "odd head width", "nine levels", "many samples of one head")
    calls = [Call.of(TABLE[name], torch.float32, shift) for name in names for shift in (0, 1)]
    wrong = [call._replace(spatial_shapes=[(900, 7)] * len(call.spatial_shapes)) for call in calls]
    path = gradients_program(float32_only(tmp_path, BACKWARD.read_text()))
    file = tmp_path / "calls"
    file.write_bytes(b"".join(call.to_bytes() for call in (*calls, *wrong)))

    result = subprocess.run([str(path), str(file)], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines() == ["no error"] * 4 * len(calls)


def test_every_barrier_is_known() -> None:
    names = [name for name, _ in barriers(BACKWARD)]

    assert names == ["__syncthreads", "__syncwarp", "__syncwarp", "__syncwarp"]
