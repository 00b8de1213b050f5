"""What a GPU's device asks of PyTorch, which stand-ins answer here."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engines.gpu.torch_device import Gpu

FLAGS = ("tf32", "fp16_reduced_precision_reduction", "bf16_reduced_precision_reduction")
GRACE_S = 0.3  # for a thread to go on where nothing holds it


class FakeCapture:
    """PyTorch's captures: `torch.cuda.graph`, which is broken by a second one in the process."""

    def __init__(self) -> None:
        self.num_open = 0
        self.num_entered = 0
        self.prepared = threading.Barrier(2)  # both threads are about to capture
        self.second = threading.Event()  # both have entered

    @contextmanager
    def graph(self, graph: object, **options: object) -> Iterator[None]:
        self.num_entered += 1
        self.num_open += 1
        if self.num_entered == 2:
            self.second.set()
        if self.num_open > 1:
            raise RuntimeError("another capture is under way")
        yield
        self.num_open -= 1

    def compute(self) -> tuple[torch.Tensor, ...]:
        """What is captured; meanwhile, the other thread may go as far as it can."""
        self.second.wait(GRACE_S)
        return (torch.zeros(1),)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCapture]:
    fake = FakeCapture()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", fake.prepared.wait)
    monkeypatch.setattr(torch.cuda, "graph", fake.graph)
    places: list[tuple[Any, str]] = [(torch.backends.cudnn, "allow_tf32")]
    places += [(torch.backends.cuda.matmul, f"allow_{name}") for name in FLAGS]
    before = [getattr(*place) for place in places]
    yield fake
    for place, value in zip(places, before, strict=True):
        setattr(*place, value)


def test_two_engines_capture_one_after_the_other(captures: FakeCapture) -> None:
    gpus = [Gpu(0), Gpu(0)]

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda gpu: gpu.capture(captures.compute), gpus))

    assert len(made) == captures.num_entered == 2
