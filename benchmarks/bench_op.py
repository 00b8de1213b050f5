"""Milliseconds of multi-scale deformable attention on a CPU: python -m benchmarks.bench_op.

The native kernels, for every instruction set that this CPU has, with values kept in float32 and in
bfloat16, against plain PyTorch (`model.network.ops.reference`) and, if installed, Hugging Face
transformers and torch-ms-deform-attn. Calls take turns, --rounds times, and the fastest of each
counts: in CPU time of the process with one thread, otherwise in wall time. The last two receive
locations and weights; the others compute them, softmax included.
"""

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.machine import cpu_name
from model.network.ops.ms_deform_attn import ms_deform_attn
from model.network.ops.reference import ms_deform_attn_reference, sampling_locations
from plugins import cpu_kernels

PYRAMID = ((100, 134), (50, 67), (25, 34), (13, 17))  # an image of 800 x 1066
NUM_POINTS = 4
PEERS = ("transformers", "torch-ms-deform-attn")


class Call(NamedTuple):
    """Arguments of the op."""

    value: Tensor
    shapes: list[tuple[int, int]]
    reference_points: Tensor
    offsets: Tensor
    logits: Tensor

    def flat_shapes(self) -> list[int]:
        """The shapes as a flat list, as the operator takes them."""
        return list(itertools.chain.from_iterable(self.shapes))


class Contestant(NamedTuple):
    """Something to be timed: its forward pass, and its backward pass if it has one."""

    name: str
    forward: Callable[[], Tensor]
    backward: Callable[[], object] | None


def make_call(num_queries: int | None, num_heads: int, *, head_dim: int) -> Call:
    """Queries at every pixel, or at some; samples where an untrained model looks, with noise.

    It looks in the direction of each head, one to four pixels away; the noise has a standard
    deviation of one pixel.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    centres = torch.cat(
        [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
            for h, w in PYRAMID
        ]
    )
    num_tokens, num_levels = len(centres), len(PYRAMID)
    if num_queries is not None:
        centres = centres[torch.randint(num_tokens, (num_queries,), generator=generator)]
    heads = (1, len(centres), num_heads, num_levels, NUM_POINTS)
    angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    distances = torch.arange(1.0, NUM_POINTS + 1)
    return Call(
        normal(1, num_tokens, num_heads, head_dim),
        list(PYRAMID),
        centres[None, :, None].repeat(1, 1, num_levels, 1),
        directions[:, None, None] * distances[:, None] + normal(*heads, 2),
        normal(*heads),
    )


CALLS = {
    "encoder, 17,821 queries": lambda: make_call(None, 8, head_dim=32),
    "decoder, 300 queries": lambda: make_call(300, 8, head_dim=32),
    "one head of 256 channels, 2,400 queries": lambda: make_call(2400, 1, head_dim=256),
}


def contestants(call: Call) -> Iterator[Contestant]:
    """Everything that can be timed on this machine."""
    for instructions in reversed(cpu_kernels.instruction_sets()):
        for name, dtype in (("fp32", torch.float32), ("bf16 values", torch.bfloat16)):
            yield _native(call, instructions, f"native, {instructions}, {name}", dtype)
    value, shapes, *others = call
    yield _differentiated(
        "plain PyTorch",
        lambda value, *others: ms_deform_attn(value, shapes, *others, backend="reference"),
        (value, *others),
    )
    locations = sampling_locations(call.shapes, call.reference_points, call.offsets)
    weights = call.logits.flatten(-2).softmax(-1).view_as(call.logits)
    table = torch.tensor(shapes)
    starts = torch.cat((table.new_zeros(1), table.prod(1).cumsum(0)[:-1]))
    inputs = (value, locations, weights)
    if installed("transformers"):
        from transformers.models.deformable_detr import modeling_deformable_detr

        module = modeling_deformable_detr.MultiScaleDeformableAttention()
        yield _differentiated(
            "Hugging Face transformers",
            lambda value, locations, weights: module(
                value, table, shapes, starts, locations, weights, 64
            ),
            inputs,
        )
    if installed("torch-ms-deform-attn"):
        import torch_ms_deform_attn

        yield _differentiated(
            "torch-ms-deform-attn",
            lambda value, locations, weights: torch_ms_deform_attn.ms_deform_attn(
                value, table, starts, locations, weights
            ),
            inputs,
        )


def _native(call: Call, instructions: str, name: str, dtype: torch.dtype) -> Contestant:
    value, _, points, offsets, logits = call
    arguments = (value, call.flat_shapes(), points, offsets, logits)

    def forward() -> Tensor:
        return cpu_kernels.forward(*arguments, kept_as=dtype, instructions=instructions)

    output = forward()

    def backward() -> object:
        return cpu_kernels.backward(output, *arguments, instructions=instructions)

    return Contestant(name, forward, backward if dtype == torch.float32 else None)


def _differentiated(
    name: str, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> Contestant:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    gradient = output.detach()

    @torch.no_grad()
    def forward() -> Tensor:
        return function(*inputs)

    def backward() -> object:
        return torch.autograd.grad(output, leaves, gradient, retain_graph=True)

    return Contestant(name, forward, backward)


def installed(package: str) -> str | None:
    """The version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fastest(
    functions: dict[str, Callable[[], object]], rounds: int, *, clock: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds of each, the least of all turns; in each, a first call warms the caches."""
    times: dict[str, float] = {}
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            start = clock()
            function()
            times[name] = min(times.get(name, math.inf), 1000 * (clock() - start))
    return times


def print_table(title: str, call: Call, *, rounds: int, clock: Callable[[], float]) -> None:
    """Time a call with every contestant."""
    them = list(contestants(call))
    value, shapes, *others = call
    exact = ms_deform_attn_reference(value.double(), shapes, *(t.double() for t in others))
    errors = {c.name: (c.forward().double() - exact).abs().max().item() for c in them}
    forward = fastest({c.name: c.forward for c in them}, rounds, clock=clock)
    backward = fastest({c.name: c.backward for c in them if c.backward}, rounds, clock=clock)
    print(f"\n## {title}\n")
    peers = [name for name in ("Hugging Face transformers", "torch-ms-deform-attn")
             if name in forward]  # fmt: skip
    head = ["", "forward ms", *(f"x {peer}" for peer in peers), "backward ms"]
    head += [*(f"x {peer}" for peer in peers), "largest error"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for c in them:
        cells = [c.name]
        for times in (forward, backward):
            mine = times.get(c.name)
            cells += [f"{mine:.2f}" if mine else ""]
            cells += [f"{times[peer] / mine:.1f}" if mine else "" for peer in peers]
        print(f"| {' | '.join([*cells, f'{errors[c.name]:.1e}'])} |", flush=True)


def main() -> None:
    """Print a table for every call."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_op", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    packages = [f"torch {torch.__version__}"]
    packages += [f"{name} {installed(name)}" for name in PEERS if installed(name)]
    print(f"{cpu_name()}, {os.cpu_count()} cores; {arguments.threads} threads, fastest of "
          f"{arguments.rounds}; {', '.join(packages)}")  # fmt: skip
    for title, make in CALLS.items():
        print_table(title, make(), rounds=arguments.rounds, clock=clock)


if __name__ == "__main__":
    main()
