"""The op's backends against each other and against a plain loop over samples."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model.network.ops.ms_deform_attn import ms_deform_attn
from tests.ops.cases import CASES, OpCase

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def _pixel(maps: Tensor, y: int, x: int) -> Tensor:
    height, width = maps.shape[:2]
    inside = 0 <= y < height and 0 <= x < width
    return maps[y, x] if inside else torch.zeros_like(maps[0, 0])


def _plain_loop(
    value: Tensor,
    shapes: list[tuple[int, int]],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Equation (3), a sample at a time."""
    batch, queries, heads, levels, points = logits.shape
    out = value.new_zeros(batch, queries, heads, value.shape[-1])
    starts = [0, *itertools.accumulate(h * w for h, w in shapes)]
    for b, q, m in itertools.product(range(batch), range(queries), range(heads)):
        weights = logits[b, q, m].flatten().softmax(0).view(levels, points)
        for level, (h, w) in enumerate(shapes):
            maps = value[b, starts[level] : starts[level + 1], m].view(h, w, -1)
            for p in range(points):
                x, y = reference[b, q, level, :2].tolist()
                dx, dy = offsets[b, q, m, level, p].tolist()
                if reference.shape[-1] == 4:
                    box_w, box_h = reference[b, q, level, 2:].tolist()
                    x, y = x + dx / points * box_w / 2, y + dy / points * box_h / 2
                else:
                    x, y = x + dx / w, y + dy / h
                x, y = x * w - 0.5, y * h - 0.5
                left, top = math.floor(x), math.floor(y)
                fx, fy = x - left, y - top
                sample = (
                    _pixel(maps, top, left) * (1 - fx) * (1 - fy)
                    + _pixel(maps, top, left + 1) * fx * (1 - fy)
                    + _pixel(maps, top + 1, left) * (1 - fx) * fy
                    + _pixel(maps, top + 1, left + 1) * fx * fy
                )
                out[b, q, m] += weights[level, p] * sample
    return out.flatten(2)


@by_name
def test_reference_equals_a_loop_over_samples(case: OpCase) -> None:
    inputs = case.inputs(torch.float64)

    result = ms_deform_attn(*inputs, backend="reference")

    torch.testing.assert_close(result, _plain_loop(*inputs), rtol=0, atol=1e-12)


@by_name
def test_operator_equals_reference(case: OpCase) -> None:
    inputs = case.inputs(torch.float32)

    result = ms_deform_attn(*inputs, backend="operator")

    torch.testing.assert_close(result, ms_deform_attn(*inputs, backend="reference"))


def test_reference_passes_gradcheck() -> None:
    value, shapes, *rest = CASES[1].inputs(torch.float64)
    tensors = [t.requires_grad_() for t in (value, *rest)]

    assert torch.autograd.gradcheck(
        lambda value, *rest: ms_deform_attn(value, shapes, *rest, backend="reference"), tensors
    )


def test_operator_passes_opcheck() -> None:
    value, shapes, *rest = CASES[0].inputs()
    flat = [side for shape in shapes for side in shape]

    torch.library.opcheck(torch.ops.detr.ms_deform_attn.default, (value, flat, *rest))


def test_memory_layout_of_the_inputs_does_not_matter() -> None:
    value, shapes, *rest = CASES[4].inputs()
    scattered = value.transpose(1, 2).contiguous().transpose(1, 2)

    result = ms_deform_attn(scattered, shapes, *rest)

    assert not scattered.is_contiguous()
    torch.testing.assert_close(result, ms_deform_attn(value, shapes, *rest))


@by_name
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_in_half_precision_cost_one_rounding_of_the_output(
    case: OpCase, dtype: torch.dtype
) -> None:
    value, shapes, *rest = case.inputs(dtype)
    exact = ms_deform_attn(value.double(), shapes, *(t.double() for t in rest), backend="reference")

    half = ms_deform_attn(value, shapes, *rest, backend="reference")

    assert half.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2 * exact.abs()
    assert ((half.double() - exact).abs() <= rounding + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_wide_level_is_sampled_where_float32_says_when_values_are_half(
    dtype: torch.dtype, autocast: bool
) -> None:
    # Channel c counts columns from column 8 c: near it, values are small, and so is their rounding.
    values = torch.arange(167)[:, None] - 8 * torch.arange(22)  # exact in every type
    points = torch.linspace(0.01, 0.99, 50)[None, :, None, None] * torch.tensor([1.0, 0.0])
    points = points + torch.tensor([0.0, 0.5])
    offsets, logits = torch.zeros(1, 50, 1, 1, 1, 2), torch.zeros(1, 50, 1, 1, 1)

    with torch.autocast("cpu", dtype, enabled=autocast):
        value = values[None, :, None].to(dtype)
        sampled = ms_deform_attn(value, [(1, 167)], points, offsets, logits, backend="reference")

    columns = points[0, :, 0, 0] * 167 - 0.5
    nearest = (columns / 8).round().long()
    error = sampled[0].gather(1, nearest[:, None])[:, 0] - (columns - 8 * nearest)
    assert error.abs().max() < 0.02  # a grid in bfloat16 is up to 0.2 columns off


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (2, 30, 8), "expected value"),
        (2, (2, 4, 2, 2), "expected reference_points"),
        (2, (2, 5, 2, 3), "expected reference_points"),
        (4, (2, 5, 2, 2, 4), "expected attention_logits"),
        (2, (1, 5, 2, 2), "expected reference_points"),  # kernels would read what is behind it
        (2, (5, 2, 2), "expected reference_points"),
        (0, (2, 30, 3, 4), "expected value with B = 2 and M = 2"),
        (0, (3, 30, 2, 4), "expected value with B = 2 and M = 2"),
    ],
)
def test_shapes_that_disagree_are_refused(
    position: int, shape: tuple[int, ...], message: str
) -> None:
    inputs: list[Any] = [*CASES[0].inputs()]
    inputs[position] = torch.zeros(shape)

    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*inputs)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="auto, reference, operator"):
        ms_deform_attn(*CASES[0].inputs(), backend="magic")
