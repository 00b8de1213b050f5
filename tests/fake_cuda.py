"""A CUDA runtime without a GPU, strict about what the real one leaves undefined.

It stands in for the module `cuda.bindings.runtime`. Memory of the GPU is memory of the host, filled
with rubbish. Work put into a stream runs only when somebody waits for it, so that whoever reads a
result too early, or overwrites or frees what is still in use, is found out by a `Misuse`. So are
two streams that use the same memory without one waiting for the other, and a thread that uses
another GPU than the stream's. Errors that the real runtime would return are returned.
"""

# ruff: noqa: N802, N815 - the names are those of the real module

import ctypes
import functools
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

MIB = 1024 * 1024
RUBBISH = 0xAB


class Misuse(AssertionError):
    """The runtime was used in a way that it does not define."""


class CudaErrorCode(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


@dataclass(eq=False)
class Block:
    """Memory of one allocation."""

    kind: str  # "device" or "pinned"
    content: np.ndarray
    is_free: bool = False

    @property
    def address(self) -> int:
        return self.content.ctypes.data


@dataclass(eq=False)
class Work:
    """Something in a stream: what it does, and what has to stay until it is done."""

    run: Callable[[], None]
    uses: tuple[object, ...] = ()
    after: "Event | None" = None  # of another stream, as it was recorded when this was put


@dataclass(eq=False)
class Stream:
    number: int
    device: int
    pending: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None  # while capturing
    num_done: int = 0

    def __int__(self) -> int:
        return self.number

    def run_until(self, position: int) -> None:
        """Run its work up to a position, counted from its first."""
        while self.num_done < position:
            self.num_done += 1
            self.pending.pop(0).run()


@dataclass(eq=False)
class Event:
    device: int
    stream: Stream | None = None
    position: int = 0  # in the stream: how much work comes before
    is_destroyed: bool = False


@dataclass(eq=False)
class Graph:
    work: list[Work]
    is_destroyed: bool = False


class Failure(Exception):
    """Becomes the error code that a function returns."""

    def __init__(self, code: CudaErrorCode) -> None:
        self.code = code


def returns_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the binding: it returns (code, *values), and fails if a test wants it to."""

    @functools.wraps(function)
    def call(self: "FakeCuda", *arguments: Any) -> Any:
        name = function.__name__
        if self.is_lost:
            return (CudaErrorCode.cudaErrorIllegalAddress,)
        if name in self.failures:
            return (self.failures.pop(name),)
        try:
            values = function(self, *arguments)
        except Failure as failure:
            return (failure.code,)
        return (CudaErrorCode.cudaSuccess, *(values or ()))

    return call


class FakeCuda:
    """The module. `failures` names functions whose next call returns an error.

    `meanwhile` is called once, by the next thread that waits for the GPU.
    """

    cudaError_t = CudaErrorCode
    cudaStreamNonBlocking = 1
    cudaEventBlockingSync = 1
    cudaEventDisableTiming = 2
    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, total_bytes: int = 1024 * MIB, num_devices: int = 1) -> None:
        self.name, self.major, self.minor = b"NVIDIA Fake", 8, 6
        self.num_devices = num_devices
        self._current = threading.local()  # the number of a thread's GPU
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self.blocks: list[Block] = []
        self.streams: list[Stream] = []
        self.live: set[object] = set()  # streams, events and graphs that are not destroyed
        self.failures: dict[str, CudaErrorCode] = {}
        self.num_uploads = 0
        self.meanwhile: Callable[[], None] | None = None
        self.is_lost = False  # as after an illegal access: nothing works any more
        self._numbers = itertools.count(1000)

    # --- what a test looks at

    def leaks(self) -> list[object]:
        """What was never released."""
        return [block for block in self.blocks if not block.is_free] + list(self.live)

    @property
    def num_graphs(self) -> int:
        return sum(isinstance(thing, Graph) for thing in self.live)

    def block_at(self, address: int, num_bytes: int, kind: str) -> Block:
        """The allocation that holds all these bytes."""
        for block in self.blocks:
            start, end = block.address, block.address + block.content.nbytes
            if start <= address < end and not block.is_free:
                if block.kind != kind:
                    raise Misuse(f"expected {kind} memory, got {block.kind}")
                if address + num_bytes > end:
                    raise Misuse(f"{num_bytes} bytes end {address + num_bytes - end} too late")
                return block
        raise Misuse(f"{address:#x} is no allocated memory")

    def is_in_flight(self, thing: object) -> bool:
        """Whether work that was not waited for uses it."""
        return any(thing in work.uses for stream in self.streams for work in stream.pending)

    def put(self, stream: int | Stream, work: Work) -> None:
        """Add work to a stream, or to what it captures."""
        found = self._stream(stream)
        self._require_device(found)
        if found.captured is None:
            self._require_order(found, work)
        (found.pending if found.captured is None else found.captured).append(work)

    def is_capturing(self, stream: int | Stream) -> bool:
        return self._stream(stream).captured is not None

    def refuse_capture(self) -> None:
        if any(stream.captured is not None for stream in self.streams):
            raise Misuse("not allowed while a stream is being captured")

    # --- the device

    def cudaGetErrorString(self, code: CudaErrorCode) -> tuple[CudaErrorCode, bytes]:
        text = "out of memory" if code == CudaErrorCode.cudaErrorMemoryAllocation else "a reason"
        return CudaErrorCode.cudaSuccess, text.encode()

    @returns_code
    def cudaGetDeviceCount(self) -> tuple[int]:
        return (self.num_devices,)

    @returns_code
    def cudaSetDevice(self, device: int) -> None:
        if device >= self.num_devices:
            raise Failure(CudaErrorCode.cudaErrorInvalidDevice)
        self._current.device = device

    @returns_code
    def cudaGetDeviceProperties(self, device: int) -> tuple[object]:
        return (SimpleNamespace(name=self.name, major=self.major, minor=self.minor),)

    @returns_code
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.total_bytes - self.used_bytes, self.total_bytes

    # --- memory

    @returns_code
    def cudaMalloc(self, num_bytes: int) -> tuple[int]:
        return self._allocate("device", num_bytes)

    @returns_code
    def cudaHostAlloc(self, num_bytes: int, flags: int) -> tuple[int]:
        return self._allocate("pinned", num_bytes)

    @returns_code
    def cudaFree(self, address: int) -> None:
        self._free(address, "device")

    @returns_code
    def cudaFreeHost(self, address: int) -> None:
        self._free(address, "pinned")

    @returns_code
    def cudaMemcpyAsync(
        self, target: int, source: int, num_bytes: int, kind: int, stream: Stream
    ) -> None:
        kinds = {1: ("device", "pinned"), 2: ("pinned", "device"), 3: ("device", "device")}[kind]
        ends = ((target, num_bytes, kinds[0]), (source, num_bytes, kinds[1]))
        to, of = (self.block_at(*end) for end in ends)
        before = ctypes.string_at(source, num_bytes) if kind == 1 else None
        self.num_uploads += kind == 1
        if kind == 2:
            ctypes.memset(target, RUBBISH, num_bytes)  # what it holds before the copy has ended

        def copy() -> None:
            data = ctypes.string_at(source, num_bytes)
            if before is not None and data != before:
                raise Misuse("pinned memory was changed while it was being copied to the GPU")
            ctypes.memmove(target, data, num_bytes)

        self.put(stream, Work(copy, (to, of)))

    # --- streams, events, graphs

    @returns_code
    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Stream]:
        stream = Stream(next(self._numbers), self.device)
        self.streams.append(stream)
        self.live.add(stream)
        return (stream,)

    @returns_code
    def cudaStreamDestroy(self, stream: Stream) -> None:
        if stream.pending:
            raise Misuse("a stream was destroyed with work in it")
        self.live.remove(stream)

    @returns_code
    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Event]:
        event = Event(self.device)
        self.live.add(event)
        return (event,)

    @returns_code
    def cudaEventRecord(self, event: Event, stream: Stream) -> None:
        self.refuse_capture()
        self._require_device(stream)
        if event.device != stream.device:
            raise Misuse("an event was recorded in a stream of another GPU")
        event.stream, event.position = stream, stream.num_done + len(stream.pending)

    @returns_code
    def cudaEventSynchronize(self, event: Event) -> None:
        self.refuse_capture()
        if event.stream is not None:  # else nothing was recorded, and there is nothing to wait for
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            event.stream.run_until(event.position)

    @returns_code
    def cudaStreamWaitEvent(self, stream: Stream, event: Event, flags: int) -> None:
        self.refuse_capture()
        if event.stream is not None:
            recorded = replace(event)
            run = functools.partial(event.stream.run_until, event.position)
            self.put(stream, Work(run, after=recorded))

    @returns_code
    def cudaEventDestroy(self, event: Event) -> None:
        self.live.remove(event)

    @returns_code
    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> None:
        stream.captured = []

    @returns_code
    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Graph]:
        assert stream.captured is not None
        graph, stream.captured = Graph(stream.captured), None
        self.live.add(graph)
        return (graph,)

    @returns_code
    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[Graph]:
        executable = Graph(graph.work)
        self.live.add(executable)
        return (executable,)

    @returns_code
    def cudaGraphDestroy(self, graph: Graph) -> None:
        self.live.remove(graph)

    @returns_code
    def cudaGraphExecDestroy(self, graph: Graph) -> None:
        if self.is_in_flight(graph):
            raise Misuse("a graph was destroyed while it was running")
        self.live.remove(graph)

    @returns_code
    def cudaGraphLaunch(self, graph: Graph, stream: Stream) -> None:
        if graph not in self.live:
            raise Misuse("a graph was launched that is destroyed")
        for work in graph.work:
            self.put(stream, Work(work.run, (*work.uses, graph)))

    # --- inside

    @property
    def device(self) -> int:
        """The number of the calling thread's GPU."""
        return getattr(self._current, "device", 0)

    def _require_device(self, stream: Stream) -> None:
        if stream.device != self.device:
            raise Misuse(f"the thread uses GPU {self.device}, the stream is of {stream.device}")

    def _require_order(self, stream: Stream, work: Work) -> None:
        """Refuse work on what another stream may still be using."""
        for other in self.streams:
            for position, earlier in enumerate(other.pending, other.num_done):
                is_shared = other is not stream and not set(work.uses).isdisjoint(earlier.uses)
                if is_shared and not any(
                    one.after and one.after.stream is other and one.after.position > position
                    for one in stream.pending
                ):
                    raise Misuse("two streams use the same memory, and neither waits")

    def _stream(self, stream: int | Stream) -> Stream:
        found = next(one for one in self.streams if int(one) == int(stream))
        if found not in self.live:
            raise Misuse("work was put into a stream that is destroyed")
        return found

    def _allocate(self, kind: str, num_bytes: int) -> tuple[int]:
        self.refuse_capture()
        if kind == "device" and self.used_bytes + num_bytes > self.total_bytes:
            raise Failure(CudaErrorCode.cudaErrorMemoryAllocation)
        block = Block(kind, np.full(num_bytes, RUBBISH, np.uint8))
        self.blocks.append(block)
        if kind == "device":
            self.used_bytes += num_bytes
        return (block.address,)

    def _free(self, address: int, kind: str) -> None:
        self.refuse_capture()
        block = self.block_at(address, 1, kind)
        if block.address != address:
            raise Misuse("freed in the middle")
        if self.is_in_flight(block):
            raise Misuse(f"{kind} memory was freed while it was in use")
        block.is_free = True
        block.content[:] = RUBBISH
        if kind == "device":
            self.used_bytes -= block.content.nbytes
