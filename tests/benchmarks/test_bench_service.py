"""What bench_service compares the service with."""

import threading

import numpy as np

from benchmarks.bench_service import Load, Measured, count_runs, served_share
from benchmarks.http_clients import Sample
from bundle.postprocess import RawOutput
from tests.fakes import FakeEngine


class TwoAtOnce(FakeEngine):
    """An engine whose first two runs end together."""

    runs_at_once = 2

    def __init__(self) -> None:
        super().__init__()
        self._both = threading.Barrier(2)
        self._started = threading.local()

    def run(self, images: np.ndarray, padding_mask: np.ndarray) -> RawOutput:
        if not hasattr(self._started, "once"):
            self._started.once = self._both.wait(timeout=30)
        return super().run(images, padding_mask)


def test_the_bare_engine_runs_as_many_batches_at_once_as_it_is_served_with() -> None:
    batch = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8), np.bool_)

    assert count_runs(TwoAtOnce(), batch, seconds=0.01) >= 2


def test_the_share_is_the_most_that_a_closed_loop_reached() -> None:
    def rounds(*efficiencies: float) -> list[Measured]:
        return [Measured(Sample(*[0] * len(Sample._fields)), one, 0.0) for one in efficiencies]

    loads = {
        (Load(1), "ours"): rounds(0.3, 0.3),
        (Load(32), "ours"): rounds(0.9, 0.8, 0.7),
        (Load(share=2.0), "ours"): rounds(0.95),
    }

    assert served_share(loads) == 0.8
