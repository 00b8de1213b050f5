"""Small honest stand-ins for what is slow or beyond a test's control."""

import threading

import numpy as np
import numpy.typing as npt

from bundle.postprocess import RawOutput
from engines.base import EngineFailure, EngineInfo


class FakeClock:
    """A clock that stands still until a test advances it."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class Gate:
    """Holds threads at `pass_through` while it is shut, and counts those that have arrived."""

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self._arrivals = threading.Semaphore(0)
        self.open()

    def open(self) -> None:
        self._is_open.set()

    def shut(self) -> None:
        self._is_open.clear()

    def pass_through(self) -> None:
        self._arrivals.release()
        if not self._is_open.wait(timeout=30):
            raise TimeoutError("the gate was never opened")

    def wait_for_arrival(self) -> None:
        if not self._arrivals.acquire(timeout=30):
            raise TimeoutError("nothing arrived at the gate")


POISON = 66  # the top-left pixel of an image that FakeEngine fails on


class FakeEngine:
    """Finds the same two objects in every image, and remembers the shapes of its batches.

    Label 0 with score 0.9 in the middle half of the image, label 1 with score 0.2 in its top-left
    quarter. It waits at `gate`, and fails on a batch with a poisoned image.
    """

    name = "fake"
    info = EngineInfo("fake", "fp32", "fp32", "standard", threads=2, streams=1)
    largest_batches = ()
    gpu_memory_bytes = 0
    runs_at_once = 1

    def __init__(self, max_batch_size: int = 8) -> None:
        self.max_batch_size = max_batch_size
        self.gate = Gate()
        self.batch_shapes: list[tuple[int, ...]] = []
        self.is_closed = False

    @property
    def num_images(self) -> int:
        return sum(shape[0] for shape in self.batch_shapes)

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        assert images.shape[:3] == padding_mask.shape
        assert len(images) <= self.max_batch_size
        assert not self.is_closed
        self.batch_shapes.append(images.shape)
        self.gate.pass_through()
        if (images[:, 0, 0] == POISON).all(axis=-1).any():
            raise EngineFailure("a poisoned image")
        batch_size = len(images)
        return RawOutput(
            scores=np.tile(np.array([0.9, 0.2], np.float32), (batch_size, 1)),
            labels=np.tile(np.array([0, 1]), (batch_size, 1)),
            boxes=np.tile(
                np.array([[0.25, 0.25, 0.75, 0.75], [0, 0, 0.5, 0.5]], np.float32),
                (batch_size, 1, 1),
            ),
        )

    def close(self) -> None:
        self.is_closed = True
