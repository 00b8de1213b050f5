"""PyTorch's operator on a GPU against the reference in float64; needs no TensorRT."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.configs import tiny
from model.network.deformable_detr import DeformableDetr
from model.network.ops.ms_deform_attn import ms_deform_attn
from model.network.ops.reference import ms_deform_attn_reference
from model.training.optimiser_step import take_step
from model.training.training_state import TrainingState
from plugins.cuda_kernels import CudaKernels, cuda_kernels
from plugins.gpu_kernels import gpu_kernels
from plugins.triton_kernels import TritonKernels, triton_kernels
from tests.model.training.test_optimiser_step import make_batch, step_once
from tests.ops.cases import PYRAMID, OpCase
from tests.plugins.test_cuda_kernel import DTYPES, TABLE

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("_torch_gpu")]

DEVICE = "cuda"
Call = tuple[Tensor, list[tuple[int, int]], Tensor, Tensor, Tensor]
MANY = OpCase("many queries", heads=8, head_dim=32, points=4, queries=2000, shapes=PYRAMID)

# Beside one rounding of the result, in parts of the largest number of a tensor: sums in float32
# with the GPU's own exp and division. Emulated, they stay below 1e-6; a wrong tap costs 1e-2.
FLOAT32_ERROR = 5e-6


@pytest.fixture(scope="module")
def _torch_gpu() -> None:
    """A PyTorch with CUDA, and kernels that it runs: native ones, or those in Triton."""
    if not torch.cuda.is_available():
        pytest.skip("left out, as PyTorch has no CUDA here: the operator in PyTorch, training")
    if gpu_kernels() is None:
        pytest.skip("left out, without nvcc and without Triton: the operator in PyTorch, training")


@pytest.fixture(scope="module", params=["CUDA", "Triton"])
def kernels(request: pytest.FixtureRequest) -> CudaKernels | TritonKernels:
    """Each kind of kernels."""
    if request.param == "CUDA":
        native = cuda_kernels()
        return native or pytest.skip("left out, as `make plugins` found no nvcc: the CUDA kernels")
    in_triton = triton_kernels()
    return in_triton or pytest.skip("left out, without Triton or a C compiler: the Triton kernels")


def call_of(case: OpCase, dtype: torch.dtype) -> Call:
    """The arguments of a case on the GPU, all of which want gradients."""
    value, shapes, *others = case.inputs(dtype)
    moved = [tensor.to(DEVICE).requires_grad_() for tensor in (value, *others)]
    return moved[0], shapes, moved[1], moved[2], moved[3]


def gradient_of(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator).to(output.dtype).to(output.device)


def results_of(call: Call) -> list[Tensor]:
    """The operator's output and gradients."""
    output = ms_deform_attn(*call, backend="native")
    gradients = torch.autograd.grad(output, (call[0], *call[2:]), gradient_of(output))
    return [output.detach(), *gradients]


def exact(case: OpCase, dtype: torch.dtype) -> list[Tensor]:
    """The same of the reference in float64 on a CPU."""
    value, shapes, *others = case.inputs(dtype)
    inputs = [tensor.double().requires_grad_() for tensor in (value, *others)]
    output = ms_deform_attn_reference(inputs[0], shapes, *inputs[1:])
    gradient = gradient_of(output.to(dtype)).double()
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def assert_close(result: Tensor, expected: Tensor) -> None:
    """The result is off by one rounding to its type, and by FLOAT32_ERROR."""
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    unit = 0 if result.dtype == torch.float32 else torch.finfo(result.dtype).eps / 2
    difference = (result.cpu().double() - expected).abs()
    assert (difference <= expected.abs() * unit + FLOAT32_ERROR * scale).all(), difference.max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_output_and_gradients_equal_the_reference(
    kernels: CudaKernels | TritonKernels, name: str, dtype: torch.dtype
) -> None:
    value, shapes, *others = call_of(TABLE[name], dtype)
    flat = list(itertools.chain.from_iterable(shapes))

    with torch.no_grad():
        output = kernels.forward(value, flat, *others)
        gradients = kernels.backward(gradient_of(output), value, flat, *others)

    for result, expected in zip((output, *gradients), exact(TABLE[name], dtype), strict=True):
        assert_close(result, expected)


def test_deterministic_gradients_have_the_same_bits_in_every_run() -> None:
    call = call_of(MANY, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [results_of(call) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)

    assert all(map(torch.equal, itertools.chain(*runs[1:]), runs[0] * 4))
    assert_close(runs[0][1], exact(MANY, torch.float32)[1])


def test_auto_takes_the_operator() -> None:
    output = ms_deform_attn(*call_of(MANY, torch.float32))

    assert "ms_deform_attn" in type(output.grad_fn).__name__


def test_torch_accepts_the_operator_and_its_gradient() -> None:
    value, shapes, *others = call_of(TABLE["two levels, boxes"], torch.float32)
    flat = list(itertools.chain.from_iterable(shapes))

    torch.library.opcheck(torch.ops.detr.ms_deform_attn.default, (value, flat, *others))


def test_a_compiled_function_gives_the_same() -> None:
    call = call_of(TABLE["published sizes"], torch.float32)

    compiled = torch.compile(ms_deform_attn, fullgraph=True)(*call)

    assert torch.equal(compiled, ms_deform_attn(*call))


def test_work_goes_to_the_current_stream() -> None:
    call = call_of(MANY, torch.float32)
    expected = exact(MANY, torch.float32)
    stream = torch.cuda.Stream()
    late = torch.zeros_like(call[0])
    stream.wait_stream(torch.cuda.current_stream())

    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(100_000_000)  # cycles; whatever does not wait for it reads zeros
        late.copy_(call[0])
        output = ms_deform_attn(late, *call[1:], backend="native")
    stream.synchronize()

    assert_close(output, expected[0])


def test_a_gpu_that_is_not_the_current_one_computes_its_own_tensors(
    kernels: CudaKernels | TritonKernels,
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("left out, with one GPU: tensors on another one than the current")
    case = TABLE["published sizes"]
    value, shapes, *others = case.inputs()
    value, *others = (tensor.to("cuda:1") for tensor in (value, *others))
    flat = list(itertools.chain.from_iterable(shapes))

    output = kernels.forward(value, flat, *others)
    gradients = kernels.backward(gradient_of(output), value, flat, *others)

    assert torch.cuda.current_device() == 0
    for result, expected in zip((output, *gradients), exact(case, torch.float32), strict=True):
        assert result.device == value.device
        assert_close(result, expected)


def test_a_cuda_graph_replays_output_and_gradients_on_new_values() -> None:
    call = call_of(TABLE["published sizes"], torch.float32)
    value = torch.zeros_like(call[0]).requires_grad_()
    captured = (value, *call[1:])
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        gradient = gradient_of(ms_deform_attn(*captured, backend="native"))
        results_of(captured)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = ms_deform_attn(*captured, backend="native")
        gradients = torch.autograd.grad(output, (value, *call[2:]), gradient)

    with torch.no_grad():
        value.copy_(call[0])
    graph.replay()
    torch.cuda.synchronize()

    expected = exact(TABLE["published sizes"], torch.float32)
    for result, right in zip((output.detach(), *gradients), expected, strict=True):
        assert_close(result, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_training_step_is_that_of_a_cpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = replace(tiny(), model=replace(tiny().model, dropout=0.0))
    terms = {}
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        model = DeformableDetr(config.model).train().to(device)
        state = TrainingState.start(model, config)
        # On a CPU in float32, whatever the type on the GPU.
        used = torch.float32 if device == "cpu" else dtype
        terms[device] = step_once(state, [make_batch(0, 4)], config, used)

    relative = 1e-3 if dtype == torch.float32 else 0.1
    assert terms[DEVICE]["loss"] == pytest.approx(terms["cpu"]["loss"], rel=relative)
    if dtype == torch.float32:
        assert terms[DEVICE]["gradient_norm"] == pytest.approx(
            terms["cpu"]["gradient_norm"], rel=1e-2
        )


def test_a_training_step_waits_for_its_matching_alone() -> None:
    config = replace(tiny(), ema_decay=0.9)
    state = TrainingState.start(DeformableDetr(config.model).to(DEVICE).train(), config)
    images, padding_mask, targets = make_batch(0, 4)
    pinned = [{k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in t.items()}
              for t in targets]  # fmt: skip
    batch = images.pin_memory(), padding_mask.pin_memory(), pinned
    take_step(state, [batch], config=config, dtype=torch.float32)  # the first one also loads code

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing CUDA operation") as waits:
            take_step(state, [batch], config=config, dtype=torch.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert len(waits) == 1
