"""`detr::ms_deform_attn` in torch: its gradient, and what happens without kernels."""

import ctypes
import itertools
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import plugins
from model.network.ops import registration
from model.network.ops.ms_deform_attn import ms_deform_attn
from model.network.ops.registration import has_kernels
from plugins import cpu_kernels, cuda_kernels, library, triton_kernels
from plugins.cuda_kernels import CudaKernels
from plugins.triton_kernels import TritonKernels
from tests.ops.cases import CASES, OpCase
from tests.plugins import emulated

ROOT = Path(__file__).parents[4]
POINTS, BOXES = CASES[0], CASES[1]
needs_kernels = pytest.mark.skipif(
    not cpu_kernels.instruction_sets(), reason="no native kernels: there was no C++ compiler"
)
points_and_boxes = pytest.mark.parametrize("case", [POINTS, BOXES], ids=lambda case: case.name)


def differentiable(
    case: OpCase, dtype: torch.dtype
) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor, Tensor]:
    value, shapes, reference, offsets, logits = case.inputs(dtype)
    for tensor in (value, reference, offsets, logits):
        tensor.requires_grad_()
    return value, shapes, reference, offsets, logits


@needs_kernels
@points_and_boxes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_accepts_the_operator_and_its_gradient(case: OpCase, dtype: torch.dtype) -> None:
    value, shapes, *others = differentiable(case, dtype)
    flat = list(itertools.chain.from_iterable(shapes))

    torch.library.opcheck(torch.ops.detr.ms_deform_attn.default, (value, flat, *others))


@needs_kernels
@points_and_boxes
def test_gradients_are_those_of_small_differences(case: OpCase) -> None:
    value, shapes, *others = differentiable(case, torch.float64)

    assert torch.autograd.gradcheck(
        lambda value, *others: ms_deform_attn(value, shapes, *others, backend="native"),
        (value, *others),
    )


@needs_kernels
def test_a_second_derivative_is_refused() -> None:
    value, shapes, *others = differentiable(POINTS, torch.float64)
    output = ms_deform_attn(value, shapes, *others, backend="native")

    (gradient,) = torch.autograd.grad(output.sum(), value, create_graph=True)

    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(gradient.sum(), others[1])


@needs_kernels
def test_gradients_come_in_the_types_of_their_inputs() -> None:
    value, shapes, *others = differentiable(POINTS, torch.bfloat16)

    ms_deform_attn(value, shapes, *others, backend="native").float().square().sum().backward()

    assert [t.grad.dtype for t in (value, *others) if t.grad is not None] == [
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]


@needs_kernels
def test_inputs_and_gradients_may_have_any_memory_layout() -> None:
    value, shapes, *others = differentiable(POINTS, torch.float64)
    scattered = value.transpose(1, 2).contiguous().transpose(1, 2)
    factor = torch.linspace(0, 1, 8, dtype=torch.float64).expand(2, 5, 8)

    def loss(values: Tensor) -> Tensor:
        return (ms_deform_attn(values, shapes, *others, backend="native") * factor).sum()

    assert not scattered.is_contiguous()
    expected = torch.autograd.grad(loss(value), (value, *others))
    actual = torch.autograd.grad(loss(scattered), (value, *others))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@needs_kernels
def test_auto_takes_the_kernels_for_every_type_they_have() -> None:
    value, shapes, *others = POINTS.inputs()

    names = {
        type(ms_deform_attn(value.to(dtype).requires_grad_(), shapes, *others).grad_fn).__name__
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    }
    half = ms_deform_attn(value.half().requires_grad_(), shapes, *others)

    assert len(names) == 1
    assert "ms_deform_attn" in names.pop()
    assert "ms_deform_attn" not in type(half.grad_fn).__name__


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_compiled_function_is_one_graph_however_kernels_are_found(device: str) -> None:
    def choose(value: Tensor) -> Tensor:
        return value + has_kernels(device, torch.float32)

    compiled = torch.compile(choose, fullgraph=True, backend="eager")

    assert compiled(torch.zeros(())) == has_kernels(device, torch.float32)


@needs_kernels
def test_a_type_without_kernels_is_refused_by_name() -> None:
    value, shapes, *others = POINTS.inputs()

    with pytest.raises(ValueError, match=r"no kernels for torch\.float16 on cpu"):
        ms_deform_attn(value.half(), shapes, *others, backend="native")


@needs_kernels
def test_autocast_trains_through_the_operator() -> None:
    value, shapes, reference, offsets, logits = differentiable(POINTS, torch.float32)
    projection = torch.eye(4, requires_grad=True)

    with torch.autocast("cpu", torch.bfloat16):
        projected = torch.nn.functional.linear(value, projection)
        output = ms_deform_attn(projected, shapes, reference, offsets, logits)
    output.float().sum().backward()

    assert projected.dtype == output.dtype == torch.bfloat16
    assert projection.grad is not None
    assert projection.grad.isfinite().all()


@needs_kernels
@pytest.mark.parametrize(
    ("given", "autocast", "expected"),
    [
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.bfloat16, torch.float64),
        (torch.float32, torch.float16, torch.float32),  # which a CPU has no kernels for
    ],
    ids=str,
)
def test_autocast_takes_values_in_its_type_and_leaves_the_rest(
    given: torch.dtype, autocast: torch.dtype, expected: torch.dtype
) -> None:
    value, shapes, reference, offsets, logits = differentiable(POINTS, given)

    with torch.autocast("cpu", autocast):
        output = ms_deform_attn(value, shapes, reference, offsets, logits)
    output.float().sum().backward()

    rounded = ms_deform_attn(value.detach().to(expected), shapes, reference, offsets, logits)
    assert output.dtype == expected
    torch.testing.assert_close(output, rounded, rtol=0, atol=0)
    assert value.grad is not None
    assert value.grad.dtype == given


@pytest.fixture
def _gpu_without_nvcc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a GPU and Triton, as far as the search for kernels can tell."""
    found = (cuda_kernels.cuda_kernels, triton_kernels.triton_kernels, registration.say_once)
    driver = SimpleNamespace(active=SimpleNamespace(get_current_target=lambda: None))
    triton = SimpleNamespace(runtime=SimpleNamespace(driver=driver))
    source = SimpleNamespace(forward_kernel={(4,): lambda *tensors, **options: None})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(library, "find", lambda name: None)
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setattr(plugins, "triton_source", source, raising=False)
    for function in found:
        function.cache_clear()
    yield
    for function in found:
        function.cache_clear()


@pytest.mark.usefixtures("_gpu_without_nvcc")
def test_without_nvcc_a_gpu_runs_triton_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = registration.kernels_for("cuda", torch.float32)
    assert isinstance(kernels, TritonKernels)
    assert registration.kernels_for("cuda", torch.float64) is None
    # There is no tensor on a GPU here, so one on the CPU is computed by the same kernels.
    monkeypatch.setattr(registration, "kernels_for", lambda *_: kernels)
    value, shapes, *others = POINTS.inputs()

    with caplog.at_level(logging.INFO):
        outputs = [ms_deform_attn(value, shapes, *others) for _ in range(2)]

    assert [output.shape for output in outputs] == [(2, 5, 8)] * 2
    assert caplog.messages == [
        "multi-scale deformable attention: Triton kernels, as there are no native ones; `make "
        "plugins` with nvcc builds them"
    ]


@pytest.mark.usefixtures("_gpu_without_nvcc")
def test_a_gpu_that_triton_does_not_know_runs_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))

    assert registration.kernels_for("cuda", torch.float32) is None


@pytest.fixture
def _gpu_with_nvcc(_gpu_without_nvcc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine after `make plugins` with nvcc; its kernels are emulated."""
    path = emulated.library()
    monkeypatch.setattr(library, "find", {library.CUDA_KERNELS: path}.get)


@emulated.needs_compiler
@pytest.mark.usefixtures("_gpu_with_nvcc")
def test_training_on_a_gpu_takes_the_native_kernels_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = registration.kernels_for("cuda", torch.float32)
    assert isinstance(kernels, CudaKernels)
    # There is no tensor on a GPU here, so one on the CPU is computed by the same kernels.
    monkeypatch.setattr(registration, "kernels_for", lambda *_: kernels)
    value, shapes, *others = differentiable(POINTS, torch.float32)

    with caplog.at_level(logging.INFO):
        for _ in range(2):
            ms_deform_attn(value, shapes, *others).square().sum().backward()

    expected = ms_deform_attn(value, shapes, *others, backend="reference").square().sum()
    gradients = torch.autograd.grad(expected, (value, *others))
    for tensor, gradient in zip((value, *others), gradients, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * gradient)
    assert caplog.messages == ["multi-scale deformable attention: native kernels, CUDA"]


@emulated.needs_compiler
@pytest.mark.usefixtures("_gpu_with_nvcc")
def test_where_the_driver_is_too_old_for_the_native_kernels_triton_runs_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    of_emulator = ctypes.CDLL(str(emulated.library()))
    of_emulator.setDriver(12080)
    try:
        kernels = [registration.kernels_for("cuda", torch.float32) for _ in range(2)]
    finally:
        of_emulator.setDriver(13000)

    assert all(isinstance(one, TritonKernels) for one in kernels)
    assert len(caplog.messages) == 1
    assert "no native kernels: they were compiled with CUDA 13.0" in caplog.messages[0]


WITHOUT_LIBRARY = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(message)s")
from plugins import library
library.FOLDER = Path("nowhere")
import torch
from model.network.ops.ms_deform_attn import ms_deform_attn
from tests.ops.cases import CASES
value, shapes, *others = CASES[0].inputs()
outputs = [ms_deform_attn(value.requires_grad_(), shapes, *others, backend=backend)
           for backend in ("auto", "auto", "operator", "reference")]
assert all(torch.equal(output, outputs[-1]) for output in outputs)
outputs[0].sum().backward()
for act in (lambda: outputs[2].sum().backward(),
            lambda: ms_deform_attn(value, shapes, *others, backend="native")):
    try:
        act()
    except (RuntimeError, ValueError) as error:
        print(error)
"""


@pytest.mark.slow
def test_without_the_library_plain_pytorch_serves_and_says_so_once() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARY], cwd=ROOT, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr
    assert (
        result.stderr.count(
            "plain PyTorch, which is slow; to speed it up, run `make plugins` with a C++ compiler"
        )
        == 1
    )
    assert result.stdout.count("no kernels for") == 2
