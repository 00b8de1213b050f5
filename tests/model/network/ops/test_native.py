"""The native CPU kernels, for every instruction set, against the reference in float64."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.network.ops.reference import ms_deform_attn_reference
from plugins import cpu_kernels
from tests.ops.cases import CASES, OpCase

pytestmark = pytest.mark.skipif(
    not cpu_kernels.instruction_sets(), reason="no native kernels: there was no C++ compiler"
)
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_instructions = pytest.mark.parametrize(
    "instructions",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name not in cpu_kernels.instruction_sets(), reason=f"this CPU has no {name}"
            ),
        )
        for name in cpu_kernels.INSTRUCTION_SETS
    ],
)
BLOCKS = next(case for case in CASES if case.name == "blocks of queries")

# Largest errors that were seen on the cases, in parts of the largest number of each tensor or of
# one: 2.5e-7 for outputs, 1e-6 for gradients. docs/numerics.md
OUTPUT_ERROR = 5e-7
GRADIENT_ERROR = 2e-6


@pytest.fixture
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def flat(shapes: list[tuple[int, int]]) -> list[int]:
    return list(itertools.chain.from_iterable(shapes))


def error(actual: Tensor, exact: Tensor) -> float:
    """The largest difference, in parts of the largest number, or of one where all are smaller."""
    assert actual.shape == exact.shape
    if exact.numel() == 0:
        return 0.0
    return ((actual.double() - exact).abs().max() / exact.abs().max().clamp(min=1)).item()


def exact_output(case: OpCase, dtype: torch.dtype) -> Tensor:
    """The reference in float64, on inputs rounded to a type."""
    value, shapes, *others = case.inputs(dtype)
    return ms_deform_attn_reference(value.double(), shapes, *(t.double() for t in others))


def output_gradient(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)


def exact_gradients(case: OpCase, dtype: torch.dtype) -> list[Tensor]:
    value, shapes, *others = case.inputs(dtype)
    inputs = [tensor.double().requires_grad_() for tensor in (value, *others)]
    output = ms_deform_attn_reference(inputs[0], shapes, *inputs[1:])
    gradient = output_gradient(output.to(dtype)).double()
    return list(torch.autograd.grad(output, inputs, gradient))


def native_gradients(
    case: OpCase, dtype: torch.dtype, instructions: str | None = None
) -> list[Tensor]:
    value, shapes, *others = case.inputs(dtype)
    output = cpu_kernels.forward(value, flat(shapes), *others)
    gradient = output_gradient(output)
    gradients = cpu_kernels.backward(
        gradient, value, flat(shapes), *others, instructions=instructions
    )
    return list(gradients)


@by_name
@by_instructions
def test_outputs_are_those_of_the_reference(case: OpCase, instructions: str) -> None:
    value, shapes, *others = case.inputs()

    output = cpu_kernels.forward(value, flat(shapes), *others, instructions=instructions)

    assert error(output, exact_output(case, torch.float32)) <= OUTPUT_ERROR


@by_name
@by_instructions
def test_gradients_are_those_of_the_reference(case: OpCase, instructions: str) -> None:
    gradients = native_gradients(case, torch.float32, instructions)

    exact = exact_gradients(case, torch.float32)
    assert max(map(error, gradients, exact)) <= GRADIENT_ERROR


@by_name
def test_float64_is_computed_in_float64(case: OpCase) -> None:
    value, shapes, *others = case.inputs(torch.float64)

    output = cpu_kernels.forward(value, flat(shapes), *others)

    gradients = native_gradients(case, torch.float64)
    assert error(output, exact_output(case, torch.float64)) <= 1e-14
    assert max(map(error, gradients, exact_gradients(case, torch.float64))) <= 1e-14


@by_name
@by_instructions
def test_bfloat16_loses_no_more_than_plain_pytorch_does(case: OpCase, instructions: str) -> None:
    value, shapes, *others = case.inputs(torch.bfloat16)
    exact = exact_output(case, torch.bfloat16)

    output = cpu_kernels.forward(value, flat(shapes), *others, instructions=instructions)

    plain = ms_deform_attn_reference(value, shapes, *others)
    assert output.dtype == torch.bfloat16
    assert error(output, exact) <= max(2 * error(plain, exact), OUTPUT_ERROR)


@by_instructions
def test_values_that_bfloat16_holds_are_sampled_exactly(instructions: str) -> None:
    value, shapes, *others = BLOCKS.inputs()
    value = value.bfloat16()
    special = value.clone()
    special[0, 0] = torch.inf
    special[1, 0] = torch.nan

    output = cpu_kernels.forward(value, flat(shapes), *others, instructions=instructions)
    marked = cpu_kernels.forward(special, flat(shapes), *others, instructions=instructions)

    wide = cpu_kernels.forward(value.float(), flat(shapes), *others, instructions=instructions)
    torch.testing.assert_close(output, wide.bfloat16(), rtol=2**-8, atol=1e-6)
    assert marked[0].isinf().any() or marked[0].isnan().any()
    assert marked[1].isnan().any()


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    case = replace(BLOCKS, queries=300)
    value, shapes, *others = case.inputs(dtype)
    output = cpu_kernels.forward(value, flat(shapes), *others)
    gradients = native_gradients(case, dtype)

    torch.set_num_threads(1)

    assert torch.equal(output, cpu_kernels.forward(value, flat(shapes), *others))
    assert all(map(torch.equal, gradients, native_gradients(case, dtype)))


@by_instructions
@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("width", [2, 4])
def test_a_sample_that_is_nowhere_reads_as_zero(
    instructions: str, width: int, strange: float
) -> None:
    case = replace(BLOCKS, reference_width=width)
    value, shapes, reference, offsets, logits = case.inputs()
    outside = offsets.clone()
    outside[:, ::2, :, 1, 2, 0] = 1e4
    offsets[:, ::2, :, 1, 2, 0] = strange

    output = cpu_kernels.forward(
        value, flat(shapes), reference, offsets, logits, instructions=instructions
    )
    gradients = cpu_kernels.backward(
        output, value, flat(shapes), reference, offsets, logits, instructions=instructions
    )

    exact = ms_deform_attn_reference(value, shapes, reference, outside, logits)
    torch.testing.assert_close(output, exact, rtol=0, atol=1e-6)
    # Zero times an offset that is not finite, as in plain PyTorch.
    expected = torch.zeros_like(gradients[1])
    expected[:, ::2, 1, 2:3] += 0 * strange
    assert torch.equal(gradients[1].isnan(), expected.isnan())
    assert all(gradients[place].isfinite().all() for place in (0, 2, 3))


@by_instructions
def test_large_logits_do_not_overflow(instructions: str) -> None:
    value, shapes, reference, offsets, logits = BLOCKS.inputs()
    logits = logits * 1e4

    output = cpu_kernels.forward(
        value, flat(shapes), reference, offsets, logits, instructions=instructions
    )

    exact = ms_deform_attn_reference(value, shapes, reference, offsets, logits)
    torch.testing.assert_close(output, exact, rtol=0, atol=1e-6)


def test_gradients_of_reference_points_are_left_out_where_nobody_wants_them() -> None:
    value, shapes, *others = BLOCKS.inputs()
    output = cpu_kernels.forward(value, flat(shapes), *others)

    without = cpu_kernels.backward(
        output, value, flat(shapes), *others, with_reference_points=False
    )

    complete = cpu_kernels.backward(output, value, flat(shapes), *others)
    assert without[1].numel() == 0
    assert all(torch.equal(without[i], complete[i]) for i in (0, 2, 3))


def test_a_call_that_makes_no_sense_is_refused_with_the_reason() -> None:
    value, shapes, *others = BLOCKS.inputs()

    with pytest.raises(ValueError, match="do not add up to the tokens"):
        cpu_kernels.forward(value[:, 1:], flat(shapes), *others)
    with pytest.raises(ValueError, match="at least one pixel"):
        cpu_kernels.forward(value, [0, 5, *flat(shapes)[2:]], *others)
