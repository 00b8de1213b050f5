"""The few calls of the CUDA runtime that an engine needs, each one checked.

Only this file knows the Python binding, `cuda.bindings.runtime`. Each of its functions returns a
tuple of an error code and the values that the C function writes through pointers.
"""

import ctypes
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MIB = 1024 * 1024


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed."""

    def __init__(self, function: str, name: str, *, description: str) -> None:
        super().__init__(f"{function}: {description} ({name})")
        self.name = name


class Device(NamedTuple):
    """A GPU."""

    name: str
    compute_capability: str  # "8.6"
    free_bytes: int
    total_bytes: int


class Cuda:
    """The CUDA runtime, and one GPU: the number `index` of those in CUDA_VISIBLE_DEVICES."""

    def __init__(self, runtime: Any, index: int = 0) -> None:
        self.runtime = runtime
        self.index = index

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the binding; returns its result without the error code.

        Raises:
            CudaError: the code is not success.
        """
        code, *values = getattr(self.runtime, function)(*arguments)
        if code != self.runtime.cudaError_t.cudaSuccess:
            _, description = self.runtime.cudaGetErrorString(code)
            text = description.decode() if isinstance(description, bytes) else str(description)
            raise CudaError(function, code.name, description=text)
        return values[0] if len(values) == 1 else tuple(values)

    def use(self) -> None:
        """Make the GPU that of the calling thread; every thread begins with the first."""
        self.call("cudaSetDevice", self.index)

    def device(self) -> Device:
        """The GPU, and how much of its memory is free now."""
        self.use()
        properties = self.call("cudaGetDeviceProperties", self.index)
        free_bytes, total_bytes = self.call("cudaMemGetInfo")
        name = properties.name
        return Device(
            name.decode().rstrip("\0") if isinstance(name, bytes) else str(name),
            f"{properties.major}.{properties.minor}",
            int(free_bytes),
            int(total_bytes),
        )


class DeviceMemory:
    """Memory on the GPU."""

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        self._cuda = cuda
        self.num_bytes = max(num_bytes, 1)
        self.address = int(cuda.call("cudaMalloc", self.num_bytes))

    def close(self) -> None:
        """Free it; nothing on the GPU may still use it."""
        self._cuda.call("cudaFree", self.address)


class PinnedMemory:
    """Page-locked host memory, which the GPU can read and write by itself."""

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        self._cuda = cuda
        self._address = int(
            cuda.call("cudaHostAlloc", max(num_bytes, 1), cuda.runtime.cudaHostAllocDefault)
        )
        content = (ctypes.c_uint8 * max(num_bytes, 1)).from_address(self._address)
        self.bytes: npt.NDArray[np.uint8] = np.ctypeslib.as_array(content)

    def close(self) -> None:
        """Free it; neither copies nor views of `bytes` may be left."""
        del self.bytes
        self._cuda.call("cudaFreeHost", self._address)


class Graph:
    """Work captured once and launched as a whole."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda = cuda
        self.handle = handle

    def close(self) -> None:
        """Destroy it; it must not be running."""
        self._cuda.call("cudaGraphExecDestroy", self.handle)


class Event:
    """A point in a stream that threads and other streams can wait for.

    A waiting thread sleeps. By default it would spin, on a core that decoding needs, to go on some
    tens of microseconds sooner; the GPU does not wait for that, as the next batch is in its queue.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        flags = cuda.runtime.cudaEventBlockingSync | cuda.runtime.cudaEventDisableTiming
        self.handle = cuda.call("cudaEventCreateWithFlags", flags)

    def synchronize(self) -> None:
        """Sleep until the stream has got here; returns at once if it was never recorded.

        Raises:
            CudaError: something in the stream failed.
        """
        self._cuda.call("cudaEventSynchronize", self.handle)

    def close(self) -> None:
        """Destroy it."""
        self._cuda.call("cudaEventDestroy", self.handle)


class Stream:
    """A queue of GPU work that runs in order."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
        try:
            self._done = Event(cuda)
        except CudaError:
            cuda.call("cudaStreamDestroy", self._stream)
            raise
        self.handle = int(self._stream)

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """Copy a contiguous array in pinned memory to the GPU; it must not change meanwhile."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, source.ctypes.data, source.nbytes, kind)

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """Copy from the GPU into a contiguous array in pinned memory."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(target.ctypes.data, address, target.nbytes, kind)

    def copy(self, target: int, source: int, *, num_bytes: int) -> None:
        """Copy within the memory of the GPU."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target, source, num_bytes, kind)

    def record(self, event: Event) -> None:
        """Let an event stand for all work put into this stream so far."""
        self._cuda.call("cudaEventRecord", event.handle, self._stream)

    def wait_for(self, event: Event) -> None:
        """Put a wait for an event, as it is recorded now, into this stream."""
        self._cuda.call("cudaStreamWaitEvent", self._stream, event.handle, 0)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what `enqueue` puts into this stream, without running it.

        Raises:
            CudaError: something cannot be captured.
        """
        mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            self._abandon_capture()
            raise
        captured = self._cuda.call("cudaStreamEndCapture", self._stream)
        try:
            return Graph(self._cuda, self._cuda.call("cudaGraphInstantiate", captured, 0))
        finally:
            self._cuda.call("cudaGraphDestroy", captured)

    def launch(self, graph: Graph) -> None:
        """Run a captured graph."""
        self._cuda.call("cudaGraphLaunch", graph.handle, self._stream)

    def synchronize(self) -> None:
        """Sleep until everything in the stream has run.

        Raises:
            CudaError: something in it failed.
        """
        self.record(self._done)
        self._done.synchronize()

    def close(self) -> None:
        """Destroy the stream, which must be empty."""
        self._done.close()
        self._cuda.call("cudaStreamDestroy", self._stream)

    def _abandon_capture(self) -> None:
        try:
            self._cuda.call(
                "cudaGraphDestroy", self._cuda.call("cudaStreamEndCapture", self._stream)
            )
        except CudaError:  # the failure invalidated the capture, so there is no graph
            return

    def _copy(self, target: int, source: int, num_bytes: int, kind: Any) -> None:
        self._cuda.call("cudaMemcpyAsync", target, source, num_bytes, kind, self._stream)


def load_cuda(index: int = 0) -> Cuda:
    """The CUDA runtime of this machine, checked to work, with one of its GPUs.

    Raises:
        ValueError: no Python binding, no driver or no such GPU; says what to do.
    """
    try:
        cuda = Cuda(import_module("cuda.bindings.runtime"), index)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"the Python package cuda-bindings cannot be loaded ({error}); install it with "
            "`pip install --group tensorrt`"
        ) from error
    try:
        cuda.device()
    except RuntimeError as error:
        raise ValueError(_explain(error, cuda)) from error
    return cuda


def _explain(error: RuntimeError, cuda: Cuda) -> str:
    remedy = "check `nvidia-smi`; a container needs `--gpus all` and the NVIDIA container toolkit"
    name = error.name if isinstance(error, CudaError) else ""
    if name == "cudaErrorInvalidDevice":
        return (
            f"expected DETR_DEVICE below {cuda.call('cudaGetDeviceCount')}, the number of GPUs "
            f"that this process may use, got {cuda.index}; `nvidia-smi -L` lists those of the "
            "machine, and CUDA_VISIBLE_DEVICES limits them"
        )
    if name == "cudaErrorInsufficientDriver":
        return (
            f"no NVIDIA driver, or one too old for this version of CUDA: {error}; {remedy}; a "
            "driver of CUDA 12 needs `pip install 'cuda-bindings==12.9.*'`"
        )
    if name == "cudaErrorNoDevice":
        return f"no GPU is available to this process: {error}; {remedy}"
    return f"CUDA cannot be used: {error}; {remedy}"
