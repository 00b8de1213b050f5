"""Where a torch program runs: an NVIDIA GPU, or the CPU, on which its tests run."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from engines.gpu.torch_lanes import Captured, Outputs

# Of all engines in this process: PyTorch captures one graph at a time.
_CAPTURING = threading.Lock()


def start_of(memory: Tensor, shape: Sequence[int]) -> Tensor:
    """The start of a block of memory, as a tensor of this shape."""
    return memory[: math.prod(shape)].view(*shape)


class Event(Protocol):
    """A place in a stream."""

    def record(self) -> None:
        """Make it the current end of the current stream."""

    def wait(self) -> None:
        """Let the current stream go no further until the place is reached."""

    def synchronize(self) -> None:
        """Wait until the place is reached, asleep."""


class Device(Protocol):
    """A device with two streams, one for copies to it and one for everything else."""

    device: torch.device

    def copying(self) -> AbstractContextManager[None]:
        """Everything in this context is put into the stream of copies to the device."""

    def computing(self) -> AbstractContextManager[None]:
        """Everything in this context is put into the other stream."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Put a copy into the current stream; memory of the host must be `pinned`."""

    def event(self) -> Event:
        """A new event, not recorded yet."""

    def wait(self) -> None:
        """Wait until both streams are empty."""

    def pinned(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can read and write by itself."""

    def memory_bytes(self) -> int:
        """The memory in use on a GPU."""

    def capture(self, enqueue: Callable[[], Outputs]) -> Captured:
        """See `Lanes`."""


class Cpu:
    """The CPU, which runs everything at once, and has no graphs."""

    device = torch.device("cpu")

    def copying(self) -> AbstractContextManager[None]:
        """See `Device.copying`."""
        return nullcontext()

    computing = copying

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `Device.copy`."""
        target.copy_(source)

    def event(self) -> Event:
        """See `Device.event`."""
        return _Reached()

    def wait(self) -> None:
        """See `Device.wait`."""

    def pinned(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """See `Device.pinned`."""
        return torch.empty(num_elements, dtype=dtype)

    def memory_bytes(self) -> int:
        """See `Device.memory_bytes`."""
        return 0

    def capture(self, enqueue: Callable[[], Outputs]) -> Captured:
        """See `Lanes`."""
        raise RuntimeError("a CPU has no CUDA graphs")


class _Reached:
    def record(self) -> None:
        pass

    wait = synchronize = record


class Gpu:
    """A GPU, by its number of those that CUDA_VISIBLE_DEVICES allows, and two streams of it."""

    def __init__(self, index: int = 0) -> None:
        """Take the GPU, and let float32 be float32 on all GPUs for all of this process."""
        self.device = torch.device("cuda", index)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._copies, self._compute = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)
        # Graphs run one after the other, so all may use the same memory for activations.
        self._pool = torch.cuda.graph_pool_handle()

    def copying(self) -> AbstractContextManager[None]:
        """See `Device.copying`."""
        return self._using(self._copies)

    def computing(self) -> AbstractContextManager[None]:
        """See `Device.computing`."""
        return self._using(self._compute)

    @contextmanager
    def _using(self, stream: torch.cuda.Stream) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            yield

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `Device.copy`."""
        target.copy_(source, non_blocking=True)

    def event(self) -> Event:
        """See `Device.event`."""
        # A thread that waits for such an event sleeps, and leaves its core to decoding.
        event: Event = torch.cuda.Event(blocking=True)
        return event

    def wait(self) -> None:
        """See `Device.wait`."""
        self._copies.synchronize()
        self._compute.synchronize()

    def pinned(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """See `Device.pinned`."""
        return torch.empty(num_elements, dtype=dtype, pin_memory=True)

    def memory_bytes(self) -> int:
        """See `Device.memory_bytes`."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self.device)
        return total_bytes - free_bytes

    def capture(self, enqueue: Callable[[], Outputs]) -> Captured:
        """See `Lanes`."""
        graph = torch.cuda.CUDAGraph()
        captured = torch.cuda.graph(
            graph, pool=self._pool, stream=self._compute, capture_error_mode="thread_local"
        )
        with _CAPTURING, captured:
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
