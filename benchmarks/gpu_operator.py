"""Multi-scale deformable attention on a GPU, each contestant by a function that opens it.

The inputs of a call lie in several places, which take turns and together are three times as large
as the GPU's largest cache: in a model, too, other layers have run since a value was last read.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.bench_op import CALLS, Call
from benchmarks.gpu_clock import forget_memory, memory_of_caches, time_launches
from benchmarks.gpu_rounds import Times, Turn
from benchmarks.operator_kernels import find_kernels
from model.network.ops.reference import ms_deform_attn_reference, sampling_locations

LAUNCHES = 20  # in a turn
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
YARDSTICK = "plain PyTorch"
OURS = "**detr-serve, CUDA**"
AUTHORS = "the authors' kernel, without softmax and locations"
DEFORMOPS = "deformops, CUDA, without locations"
DEFORMOPS_TRITON = "deformops, Triton, without locations"
# How many times faster ours has to be on an H100, forward and backward together.
BARS = {AUTHORS: 2.0, DEFORMOPS: 1.2, DEFORMOPS_TRITON: 1.2}
IM2COL_STEP = 64  # images at once, in the authors' kernel


class OperatorTask(NamedTuple):
    """A call of `bench_op`, in a type, on a device."""

    title: str
    dtype: str
    device: str

    def __str__(self) -> str:
        return f"operator, {self.title}, {self.dtype}"

    def call(self) -> Call:
        """One set of inputs."""
        value, shapes, *others = CALLS[self.title]()
        points, offsets, logits = (tensor.to(self.device) for tensor in others)
        dtype = TYPES[self.dtype]
        return Call(
            value.to(self.device, dtype), shapes, points, offsets.to(dtype), logits.to(dtype)
        )

    def calls(self) -> list[Call]:
        """Equal sets of inputs, each in a place of its own."""
        first = self.call()
        tensors = (first.value, first.reference_points, first.offsets, first.logits)
        size = sum(tensor.nbytes for tensor in tensors)
        count = max(3, -(-3 * memory_of_caches(self.device) // size))
        return [first, *(_copy(first) for _ in range(count - 1))]


def _copy(call: Call) -> Call:
    value, shapes, *others = call
    points, offsets, logits = (tensor.clone() for tensor in others)
    return Call(value.clone(), shapes, points, offsets, logits)


class Operator(NamedTuple):
    """A contestant: what one launch on a set of inputs does, given its number."""

    forward: Callable[[int], Tensor]
    both: Callable[[int], object] | None  # forward and backward
    is_whole: bool = True  # it computes the operator


def open_operator(name: str, task: OperatorTask) -> tuple[Turn, dict[str, Any]]:
    """A contestant; about it is the largest error of its output."""
    if task.device != "cpu":  # TensorRT is slower in the default stream
        torch.cuda.set_stream(torch.cuda.Stream())
    calls = task.calls()
    operator = OPERATORS[name](task, calls)
    value, shapes, *others = calls[0]
    exact = ms_deform_attn_reference(value.double(), shapes, *(t.double() for t in others))
    error = (operator.forward(0).double().view_as(exact) - exact).abs().max().item()
    del exact
    parts = {"forward": operator.forward, "both": operator.both}

    def turn() -> Times:
        times = {
            part: time_launches(
                lambda number, run=run: run(number % len(calls)),  # type: ignore[misc]
                LAUNCHES,
                device=task.device,
            )
            for part, run in parts.items()
            if run is not None
        }
        forget_memory(task.device)
        return times

    turn()  # compiles
    return turn, {"error": error if operator.is_whole else None}


# --- the contestants


def open_kernels(task: OperatorTask, calls: list[Call], *, kind: Any, is_exact: bool) -> Operator:
    """Our kernels; if they are to be exact, with gradients that are the same in every run."""
    kernels = find_kernels(kind, task.device)
    torch.use_deterministic_algorithms(is_exact)
    arguments = [
        (call.value, call.flat_shapes(), call.reference_points, call.offsets, call.logits)
        for call in calls
    ]
    gradient = kernels.forward(*arguments[0])

    @torch.no_grad()
    def forward(number: int) -> Tensor:
        return kernels.forward(*arguments[number])

    @torch.no_grad()
    def both(number: int) -> object:
        kernels.forward(*arguments[number])
        return kernels.backward(gradient, *arguments[number], with_reference_points=True)

    return Operator(forward, both)


def open_pytorch(task: OperatorTask, calls: list[Call], *, is_compiled: bool) -> Operator:
    """The reference, as a model would run it in this type."""
    shapes = calls[0].shapes

    def attend(value: Tensor, *others: Tensor) -> Tensor:
        return ms_deform_attn_reference(value, shapes, *others)

    function = torch.compile(attend) if is_compiled else attend
    inputs = [(c.value, c.reference_points, c.offsets, c.logits) for c in calls]
    return differentiated(function, inputs)


def open_authors(task: OperatorTask, calls: list[Call]) -> Operator:
    """The kernel of the paper's authors, which receives locations and weights."""
    module = importlib.import_module("MultiScaleDeformableAttention")
    if task.dtype != "fp32":
        raise ValueError("the kernel computes in float32 only")
    shapes, starts = _levels(calls[0])

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Tensor:
            ctx.save_for_backward(*tensors)
            value, locations, weights = tensors
            output: Tensor = module.ms_deform_attn_forward(
                value, shapes, starts, locations, weights, IM2COL_STEP
            )
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
            value, locations, weights = ctx.saved_tensors
            return tuple(
                module.ms_deform_attn_backward(
                    *(value, shapes, starts, locations, weights),
                    gradients[0].contiguous(),
                    IM2COL_STEP,
                )
            )

    return differentiated(Attend.apply, [(c.value, *_prepared(c)) for c in calls])


def open_deformops(task: OperatorTask, calls: list[Call], *, backend: str) -> Operator:
    """Of the package deformops, whose kernel receives locations and computes softmax."""
    registry = importlib.import_module("deformops.registry")
    shapes, starts = _levels(calls[0])
    chosen = getattr(registry.Backend, backend)

    def attend(value: Tensor, locations: Tensor, logits: Tensor) -> Tensor:
        output: Tensor = registry.msda(
            value, shapes, starts, locations, logits, method="softmax", backend=chosen
        )
        return output

    inputs = [
        (c.value, sampling_locations(c.shapes, c.reference_points, c.offsets), c.logits.flatten(-2))
        for c in calls
    ]
    return differentiated(attend, inputs)


def open_plugin(task: OperatorTask, calls: list[Call], *, is_ours: bool) -> Operator:
    """A plugin of TensorRT: ours, or NVIDIA's, which receives locations and weights."""
    from benchmarks.gpu_plans import our_plan, their_plan

    runners = [(our_plan if is_ours else their_plan)(call) for call in calls]

    def forward(number: int) -> Tensor:
        runners[number]()
        return runners[number].tensors["output"]

    return Operator(forward, None)


def open_preparation(task: OperatorTask, calls: list[Call]) -> Operator:
    """What has to be computed for kernels that receive locations and weights."""

    def forward(number: int) -> Tensor:
        _prepared(calls[number])
        return zeros

    call = calls[0]
    zeros = call.value.new_zeros(*call.offsets.shape[:2], call.value.shape[2:].numel())
    return Operator(forward, None, is_whole=False)


def differentiated(
    function: Callable[..., Tensor], inputs: Sequence[tuple[Tensor, ...]]
) -> Operator:
    """A function of torch, with the gradients of all that it is given."""
    leaves = [[tensor.detach().clone().requires_grad_() for tensor in one] for one in inputs]
    gradient = function(*inputs[0]).detach()

    @torch.no_grad()
    def forward(number: int) -> Tensor:
        return function(*inputs[number])

    def both(number: int) -> object:
        return torch.autograd.grad(function(*leaves[number]), leaves[number], gradient)

    return Operator(forward, both)


def _levels(call: Call) -> tuple[Tensor, Tensor]:
    """The level shapes and where each level starts, int64, on the device."""
    shapes = torch.tensor(call.shapes, device=call.value.device)
    return shapes, torch.tensor(list(_starts(call)), device=call.value.device)


def _starts(call: Call) -> Iterator[int]:
    start = 0
    for height, width in call.shapes:
        yield start
        start += height * width


def _prepared(call: Call) -> tuple[Tensor, Tensor]:
    """Locations and weights, in the type of the values."""
    locations = sampling_locations(call.shapes, call.reference_points, call.offsets)
    weights = call.logits.flatten(-2).softmax(-1).view_as(call.logits)
    return locations.to(call.value.dtype), weights


OPERATORS: dict[str, Callable[[OperatorTask, list[Call]], Operator]] = {
    "plain PyTorch": partial(open_pytorch, is_compiled=False),
    "plain PyTorch, torch.compile": partial(open_pytorch, is_compiled=True),
    OURS: partial(open_kernels, kind="native", is_exact=False),
    "**detr-serve, CUDA, deterministic**": partial(open_kernels, kind="native", is_exact=True),
    "**detr-serve, Triton**": partial(open_kernels, kind="triton", is_exact=False),
    AUTHORS: open_authors,
    DEFORMOPS: partial(open_deformops, backend="CUDA"),
    DEFORMOPS_TRITON: partial(open_deformops, backend="TRITON"),
    "**TensorRT, MSDeformAttn**": partial(open_plugin, is_ours=True),
    "TensorRT, NVIDIA's plugin, without softmax and locations": partial(open_plugin, is_ours=False),
    "softmax and locations alone, PyTorch": open_preparation,
}
