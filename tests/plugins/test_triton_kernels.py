"""The Triton kernels: interpreted, against the reference in float64; compiled, what they take."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from tests.ops.cases import OpCase
from tests.ops.interpreted import InterpretedKernels, interpreter
from tests.plugins.test_cuda_gradients import (
    FLOAT32_ERROR,
    TABLE,
    computed,
    exact,
    flat,
    is_rounded_once,
    output_gradient,
)

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="triton is not installed; `make triton` does it",
)

# The interpreter takes tenths of a second for each head of an image: one case a kind, one image.
NAMES = (
    "one pixel",
    "one query",
    "nine levels",
    "many samples of one head",
    "odd head width",
    "boxes outside the map",
    "far outside the map",
    "no queries",
    "published sizes, boxes",
    "infinite, wide head",
    "infinite, boxes",
    "more samples than a chunk",
)
HALVES = ("odd head width", "published sizes, boxes")
CASES = {
    "two levels, points": TABLE["two levels, points"],
    **{name: replace(TABLE[name], batch=1) for name in NAMES},
}
ALL_TYPES = [(name, torch.float32) for name in CASES] + [(name, torch.float16) for name in HALVES]
LEVEL = replace(TABLE["one level"], batch=1, heads=1)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with interpreter() as process:
        yield process


@pytest.fixture(scope="module")
def kernels(process: ProcessPoolExecutor) -> InterpretedKernels:
    return InterpretedKernels(process, block=2**14)


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("name", "dtype"), ALL_TYPES, ids=str)
def test_output_and_gradients_equal_the_reference(
    kernels: InterpretedKernels, name: str, dtype: torch.dtype
) -> None:
    results = computed(kernels, CASES[name], dtype)

    value, _, *others = CASES[name].inputs(dtype)
    assert [r.dtype for r in results] == [value.dtype, value.dtype, *(t.dtype for t in others)]
    assert all(map(is_rounded_once, results, exact(CASES[name], dtype)))


def test_queries_may_take_several_programs_of_which_the_last_is_not_full(
    process: ProcessPoolExecutor,
) -> None:
    case = CASES["published sizes, boxes"]
    results = computed(InterpretedKernels(process, block=2048), case, torch.float32)

    assert all(map(is_rounded_once, results, exact(case, torch.float32)))


# Where a GPU rounds to bfloat16, the interpreter cuts off, which costs up to a whole unit.
@pytest.mark.parametrize("name", HALVES)
def test_bfloat16_is_computed_in_float32(kernels: InterpretedKernels, name: str) -> None:
    results = computed(kernels, CASES[name], torch.bfloat16)

    for result, expected in zip(results, exact(CASES[name], torch.bfloat16), strict=True):
        unit = 0 if result.dtype == torch.float32 else torch.finfo(torch.bfloat16).eps
        bound = expected.abs() * unit + FLOAT32_ERROR * expected.abs().max().clamp(min=1)
        assert ((result.double() - expected).abs() <= bound).all()


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", ["odd head width", "no queries"])
def test_deterministic_gradients_equal_the_reference(
    kernels: InterpretedKernels, name: str
) -> None:
    results = computed(kernels, CASES[name], torch.float32)

    assert all(map(is_rounded_once, results, exact(CASES[name], torch.float32)))


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_the_order_of_queries_changes_no_bit_in_deterministic_mode_only(
    kernels: InterpretedKernels, is_deterministic: bool
) -> None:
    case = OpCase("many queries", batch=1, heads=1, head_dim=1, queries=64, shapes=((4, 6),))
    value, shapes, *others = case.inputs()
    gradient = output_gradient(case, torch.float32)
    backwards = [tensor.flip(1) for tensor in others]

    torch.use_deterministic_algorithms(is_deterministic)
    first = kernels.backward(gradient, value, flat(shapes), *others)[0]
    last = kernels.backward(gradient.flip(1), value, flat(shapes), *backwards)[0]
    torch.use_deterministic_algorithms(False)

    assert torch.equal(first, last) == is_deterministic


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("strange", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_is_not_lost_in_deterministic_mode(
    kernels: InterpretedKernels, strange: float
) -> None:
    value, shapes, *others = LEVEL.inputs()
    gradient = output_gradient(LEVEL, torch.float32)
    gradient[0, 0, 0] = strange

    of_value = kernels.backward(gradient, value, flat(shapes), *others)[0]

    assert of_value.isnan().any()


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("size", [0.0, 2.0**60])
def test_deterministic_gradients_of_any_size_keep_their_digits(
    kernels: InterpretedKernels, size: float
) -> None:
    value, shapes, *others = LEVEL.inputs()
    gradient = output_gradient(LEVEL, torch.float32)
    expected = kernels.backward(gradient, value, flat(shapes), *others)[0]

    scaled = kernels.backward(gradient * size, value, flat(shapes), *others)[0]

    assert torch.equal(scaled, expected * size)


@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
@pytest.mark.parametrize("width", [2, 4])
def test_a_sample_that_is_nowhere_gets_no_gradient_and_shows_in_that_of_its_box(
    kernels: InterpretedKernels, width: int, strange: float
) -> None:
    case = replace(LEVEL, reference_width=width)
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
    kernels: InterpretedKernels,
) -> None:
    value, shapes, *others = LEVEL.inputs()
    gradient = output_gradient(LEVEL, torch.float32)

    without = kernels.backward(gradient, value, flat(shapes), *others, with_reference_points=False)

    complete = kernels.backward(gradient, value, flat(shapes), *others)
    assert without[1].numel() == 0
    assert all(torch.equal(without[i], complete[i]) for i in (0, 2, 3))


def test_offsets_wider_than_values_keep_their_digits(kernels: InterpretedKernels) -> None:
    value, shapes, *others = LEVEL.inputs()
    half = value.half()

    output = kernels.forward(half, flat(shapes), *others)
    gradients = kernels.backward(output, half, flat(shapes), *others)

    expected = kernels.forward(half.float(), flat(shapes), *others)
    assert torch.equal(output, expected.half())
    assert [g.dtype for g in gradients] == [torch.float16, *(3 * [torch.float32])]


def test_inputs_may_have_any_memory_layout(kernels: InterpretedKernels) -> None:
    value, shapes, *others = LEVEL.inputs()
    scattered = value.transpose(1, 3).contiguous().transpose(1, 3)
    gradient = output_gradient(LEVEL, torch.float32)[:, :, :1].expand(-1, -1, 4)

    results = kernels.backward(gradient, scattered, flat(shapes), *others)

    expected = kernels.backward(gradient.contiguous(), value, flat(shapes), *others)
    assert not scattered.is_contiguous()
    assert all(map(torch.equal, results, expected))


def test_a_call_that_makes_no_sense_is_refused_with_the_reason(
    kernels: InterpretedKernels,
) -> None:
    value, shapes, *others = TABLE["two levels, points"].inputs()
    wide = OpCase("wide", head_dim=2048, points=65, shapes=((1, 1),), batch=1).inputs()

    with pytest.raises(ValueError, match="levels that do not add up to the tokens"):
        kernels.forward(value[:, 1:], flat(shapes), *others)
    with pytest.raises(ValueError, match="a level without a pixel"):
        kernels.forward(value, [0, 5, *flat(shapes)[2:]], *others)
    with pytest.raises(ValueError, match="samples times channels of a head beyond 131072"):
        kernels.forward(wide[0], flat(wide[1]), *wide[2:])
