"""Where a torch program runs: an NVIDIA GPU, or the CPU, on which its tests run."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from engines.gpu.torch_lanes import Captured, Outputs


def start_of(memory: Tensor, shape: Sequence[int]) -> Tensor:
    """The start of a block of memory, as a tensor of this shape."""
    return memory[: math.prod(shape)].view(*shape)


class Cpu:
    """The CPU, which runs everything at once, and has no graphs."""

    device = torch.device("cpu")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Everything in this context is put into the device's queue."""
        yield

    def wait(self) -> None:
        """Wait until all of it is done."""

    def pinned(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can read and write by itself."""
        return torch.empty(num_elements, dtype=dtype)

    def memory_bytes(self) -> int:
        """The memory in use on the GPU."""
        return 0

    def capture(self, enqueue: Callable[[], Outputs]) -> Captured:
        """See `Lanes`."""
        raise RuntimeError("a CPU has no CUDA graphs")


class Gpu:
    """A GPU, by its number of those that CUDA_VISIBLE_DEVICES allows, and one stream of it."""

    def __init__(self, index: int = 0) -> None:
        """Take the GPU, and let float32 be float32 on all GPUs for all of this process."""
        self.device = torch.device("cuda", index)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._stream = torch.cuda.Stream(self.device)
        # A thread that waits for such an event sleeps, and leaves its core to decoding.
        self._done = torch.cuda.Event(blocking=True)
        # Only one graph runs at a time, so all may use the same memory for activations.
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def working(self) -> Iterator[None]:
        """See `Cpu.working`."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def wait(self) -> None:
        """See `Cpu.wait`."""
        self._done.record(self._stream)
        self._done.synchronize()

    def pinned(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """See `Cpu.pinned`."""
        return torch.empty(num_elements, dtype=dtype, pin_memory=True)

    def memory_bytes(self) -> int:
        """See `Cpu.memory_bytes`."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self.device)
        return total_bytes - free_bytes

    def capture(self, enqueue: Callable[[], Outputs]) -> Captured:
        """See `Lanes`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            outputs = enqueue()
        return _CudaGraph(graph, outputs)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Outputs) -> None:
        self._graph = graph
        self.outputs = outputs

    def replay(self) -> None:
        self._graph.replay()

    def close(self) -> None:
        self._graph.reset()
