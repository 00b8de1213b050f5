"""A device for torch programs that copies as late as a GPU may, on this CPU."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from engines.gpu.torch_device import Cpu
from tests.fakes import Gate

RUBBISH = 77


class Misuse(AssertionError):
    """Memory was used while a copy was under way."""


class LateDevice(Cpu):
    """Copies between host and device wait in their stream until somebody waits for them.

    What is computed runs at once, with what the stream has waited for by then. `launchers` are the
    threads that computed, and `gate` holds those that wait for outputs.
    """

    def __init__(self) -> None:
        self.launchers: set[int] = set()
        self.gate = Gate()
        self.num_uploads = 0
        self.is_broken = False
        self._streams: dict[str, list[Callable[[], None]]] = {"copies": [], "rest": []}
        self._pinned: set[int] = set()
        self._current = threading.local()
        self._lock = threading.RLock()

    @property
    def is_idle(self) -> bool:
        """Whether every copy has been waited for."""
        return not any(self._streams.values())

    @contextmanager
    def copying(self) -> Iterator[None]:
        """See `Device.copying`."""
        self._current.stream = "copies"
        yield
        self.num_uploads += 1

    @contextmanager
    def computing(self) -> Iterator[None]:
        """See `Device.computing`."""
        if self.is_broken:
            raise RuntimeError("cannot compute")
        self.launchers.add(threading.get_ident())
        self._current.stream = "rest"
        yield

    def pinned(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """See `Device.pinned`."""
        memory = super().pinned(num_elements, dtype)
        self._pinned.add(memory.untyped_storage().data_ptr())
        return memory

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `Device.copy`."""
        before = source.clone()

        def run() -> None:
            if self._is_pinned(source) and not torch.equal(source, before):
                raise Misuse("memory of the host was changed before it was copied")
            target.copy_(source)

        self.put(run)
        if self._current.stream == "copies" or self._is_pinned(target):
            target.fill_(RUBBISH)
        else:
            self.run_all("rest")

    def put(self, work: Callable[[], None]) -> None:
        """Add work to the current stream."""
        with self._lock:
            self._streams[self._current.stream].append(work)

    def run_all(self, stream: str) -> None:
        """Do what is in a stream."""
        with self._lock:
            while self._streams[stream]:
                self._streams[stream].pop(0)()

    def event(self) -> "LateEvent":
        """See `Device.event`."""
        return LateEvent(self)

    def wait(self) -> None:
        """See `Device.wait`."""
        for stream in self._streams:
            self.run_all(stream)

    def _is_pinned(self, memory: Tensor) -> bool:
        return memory.untyped_storage().data_ptr() in self._pinned


class LateEvent:
    """A place in a stream of a LateDevice; what is behind it may be done as well."""

    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self._stream = ""

    def record(self) -> None:
        """See `Event.record`."""
        self._stream = self._device._current.stream

    def wait(self) -> None:
        """See `Event.wait`."""
        self._device.put(lambda: self._device.run_all(self._stream))

    def synchronize(self) -> None:
        """See `Event.synchronize`."""
        self._device.gate.pass_through()
        self._device.run_all(self._stream)
