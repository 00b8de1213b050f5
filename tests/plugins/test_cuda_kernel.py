"""The CUDA kernels on a CPU: their source, compiled as C++, against the reference in float64."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.network.ops.reference import ms_deform_attn_reference
from tests.ops.cases import CASES, OpCase
from tests.plugins.emulated import CORE, KERNEL, TAPS, Call, barriers, needs_compiler, program, run

pytestmark = needs_compiler

PYRAMID = ((9, 13), (5, 7), (3, 4), (2, 2))
PUBLISHED = next(case for case in CASES if case.name == "published sizes")
MORE_CASES = (
    OpCase("published sizes, boxes", heads=8, head_dim=32, points=4, queries=37, shapes=PYRAMID,
           reference_width=4),
    OpCase("published sizes, outside the map", heads=3, head_dim=32, points=4, queries=16,
           shapes=PYRAMID, spread=1.5),
    OpCase("published sizes, one query", heads=1, head_dim=32, points=4, queries=1, shapes=PYRAMID),
    OpCase("published sizes, many queries", batch=1, heads=3, head_dim=32, points=4, queries=65,
           shapes=PYRAMID, spread=0.1),
    OpCase("heads among the queries", heads=1, head_dim=256, points=4, queries=11, shapes=PYRAMID),
    OpCase("one channel", heads=1, head_dim=1, points=4, queries=150, shapes=PYRAMID),
    OpCase("more channels than a block takes", head_dim=1030, points=2, queries=3),
    OpCase("more samples than a chunk", head_dim=16, points=5, shapes=((3, 4), (2, 1)) * 10),
    OpCase("as many levels as there may be", head_dim=8, points=1, shapes=((2, 2),) * 64),
)  # fmt: skip
TABLE = {case.name: case for case in (*CASES, *MORE_CASES)}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ORDERS = ("forward", "backward")  # of threads between barriers

# Rounding of float32 in sums of up to 64 products of values in [-0.5, 0.5]; float32 inputs.
FLOAT32_ERROR = 2.5e-7


def exact(call: Call) -> Tensor:
    """The output of the reference in float64 on the same, already rounded inputs."""
    tensors = (tensor.double() for tensor in call[2:5])
    return ms_deform_attn_reference(call.value.double(), call.spatial_shapes, *tensors)


def assert_rounded_once(output: Tensor, call: Call) -> None:
    """The output is what a float32 sum gives, rounded once to the type of the output."""
    expected = exact(call)
    unit = 0 if output.dtype == torch.float32 else torch.finfo(output.dtype).eps / 2
    difference = (output.double() - expected).abs()

    assert (difference <= expected.abs() * unit + FLOAT32_ERROR).all()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulator")


@pytest.fixture(scope="module")
def runs(directory: Path) -> dict[str, dict[tuple[str, torch.dtype], tuple[Call, Tensor, str]]]:
    """Every case in every type, in both orders; once of them under the sanitizers."""
    calls = {
        (name, dtype): Call.of(case, dtype) for name, case in TABLE.items() for dtype in DTYPES
    }
    results = {}
    for order in ORDERS:
        path = program(sanitize=order == "forward")
        made = run(path, list(calls.values()), directory, order=order)
        results[order] = dict(zip(calls, zip(calls.values(), *made, strict=True), strict=True))
    return results


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_kernel_equals_the_reference(runs, name: str, dtype: torch.dtype, order: str) -> None:
    call, output, launch = runs[order][name, dtype]

    assert launch.endswith("no error")
    assert_rounded_once(output, call)


@pytest.mark.parametrize("name", ["published sizes", "published sizes, boxes"])
def test_published_sizes_take_the_fast_path(runs, name: str) -> None:
    _, _, launch = runs["forward"][name, torch.float16]
    blocks_of_queries = -(-TABLE[name].queries // 16)

    assert launch == f"8 {blocks_of_queries} 2 no error"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_a_value_that_is_not_finite_spoils_no_other_channel(
    directory: Path, dtype: torch.dtype, wrong: float
) -> None:
    call = Call.of(PUBLISHED, dtype)
    value = call.value.clone()
    value[:, :, 2, 5] = wrong
    channel = 2 * PUBLISHED.head_dim + 5

    output = run(program(sanitize=True), [call._replace(value=value)], directory).outputs[0]

    assert not output[..., channel].isfinite().any()
    value[:, :, 2, 5] = output[..., channel] = 0.0
    assert_rounded_once(output, call._replace(value=value))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_logit_that_is_nan_spoils_no_other_head_or_query(
    directory: Path, dtype: torch.dtype
) -> None:
    call = Call.of(PUBLISHED, dtype)
    logits = call.attention_logits.clone()
    logits[1, 3, 2, 1, 0] = torch.nan
    spoilt = slice(2 * PUBLISHED.head_dim, 3 * PUBLISHED.head_dim)

    output = run(
        program(sanitize=True), [call._replace(attention_logits=logits)], directory
    ).outputs[0]

    assert output[1, 3, spoilt].isnan().all()
    output[1, 3, spoilt] = exact(call)[1, 3, spoilt].to(dtype)
    assert_rounded_once(output, call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_at_any_address_take_the_general_path(directory: Path, dtype: torch.dtype) -> None:
    call = Call.of(PUBLISHED, dtype, shift=1)

    made = run(program(sanitize=True), [call], directory)

    assert not made.launches[0].startswith("8 ")
    assert_rounded_once(made.outputs[0], call)


@pytest.mark.parametrize("name", ["published sizes", "more samples than a chunk"])
@pytest.mark.parametrize("size", [0, -3, 900, 2**20])
def test_false_level_shapes_lead_to_no_read_outside_value(
    directory: Path, name: str, size: int
) -> None:
    call = Call.of(TABLE[name], torch.float32)
    wrong = call._replace(spatial_shapes=[(size, size + 7)] * len(call.spatial_shapes))

    made = run(program(sanitize=True), [wrong], directory)

    assert made.launches[0].endswith("no error")
    assert made.outputs[0].isfinite().all()


def test_the_sanitizers_see_a_read_outside_of_value(tmp_path: Path) -> None:
    bound = "min(token, static_cast<unsigned>(numTokens - 1))"
    changed = TAPS.read_text().replace(bound, "(static_cast<void>(numTokens), token)")
    for source in (KERNEL, *CORE.glob("*.h")):
        shutil.copy(source, tmp_path)
    (tmp_path / TAPS.name).write_text(changed)
    kernel = tmp_path / KERNEL.name
    unbound = program(kernel=kernel, sanitize=True)
    call = Call.of(PUBLISHED, torch.float32)
    wrong = call._replace(spatial_shapes=[(900, 900)] * len(call.spatial_shapes))

    with pytest.raises(AssertionError, match="AddressSanitizer"):
        run(unbound, [wrong], tmp_path)


@pytest.mark.parametrize(("barrier", "line"), barriers(KERNEL))
def test_a_barrier_that_is_missing_is_noticed(directory: Path, barrier: str, line: int) -> None:
    calls = [Call.of(TABLE[name], torch.float32)
             for name in ("published sizes", "more samples than a chunk")]  # fmt: skip

    made = [
        run(program(), calls, directory, order=order, without_line=line).outputs for order in ORDERS
    ]

    wrong = [
        not (output.double() - exact(call)).abs().max() <= FLOAT32_ERROR  # also where it is NaN
        for outputs in made
        for output, call in zip(outputs, calls, strict=True)
    ]

    assert any(wrong)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_yardstick_computes_the_same(directory: Path, dtype: torch.dtype) -> None:
    cases = [case for case in TABLE.values() if case.points == 4 and len(case.shapes) == 4]
    calls = [Call.of(case, dtype) for case in cases if not case.has_infinite_border]

    made = run(program(sanitize=True), calls, directory, kernel="per_channel")

    for output, call in zip(made.outputs, calls, strict=True):
        assert_rounded_once(output, call)


def test_offsets_that_no_pair_can_be_loaded_from_are_refused(directory: Path) -> None:
    call = Call.of(PUBLISHED, torch.float16)._replace(offsets_shift=1)

    made = run(program(sanitize=True), [call], directory)

    assert made.launches == ["0 0 0 misaligned address"]


@pytest.mark.parametrize(
    "case",
    [
        OpCase("levels beyond the limit", shapes=((1, 1),) * 65),
        OpCase("references of another width", reference_width=3),
    ],
    ids=lambda case: case.name,
)
def test_sizes_that_cannot_be_run_are_refused(directory: Path, case: OpCase) -> None:
    made = run(program(sanitize=True), [Call.of(case, torch.float32)], directory)

    assert made.launches == ["0 0 0 invalid argument"]
