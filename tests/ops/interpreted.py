"""The operator's Triton kernels in Triton's interpreter, which computes with NumPy on a CPU.

Triton chooses between its interpreter and its compiler while it is imported, so the interpreter has
a process of its own.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor


class InterpretedKernels:
    """The kernels with the interface of `Kernels`, for tensors of this CPU."""

    def __init__(self, process: ProcessPoolExecutor, *, block: int) -> None:
        self._process = process
        self._block = block

    def forward(self, *inputs: Any) -> Tensor:
        """As `TritonKernels.forward`."""
        result: Tensor = self._run("forward", inputs)
        return result

    def backward(self, *inputs: Any, with_reference_points: bool = True) -> tuple[Tensor, ...]:
        """As `TritonKernels.backward`."""
        result: tuple[Tensor, ...] = self._run(
            "backward", inputs, with_reference_points=with_reference_points
        )
        return result

    def _run(self, name: str, inputs: tuple[Any, ...], **options: bool) -> Any:
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        arguments = (self._block, is_deterministic, name, inputs, options)
        return self._process.submit(_interpret, *arguments).result()


def _interpret(
    block: int, is_deterministic: bool, name: str, inputs: tuple[Any, ...], options: dict[str, bool]
) -> Any:
    """In the other process: what a method of the kernels returns."""
    from plugins import triton_source
    from plugins.triton_kernels import TritonKernels

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(is_deterministic)
    kernels = TritonKernels(triton_source, device_type="cpu", block=block)
    return getattr(kernels, name)(*inputs, **options)


@contextmanager
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        process.submit(int).result()  # starts it
    with process:
        yield process
