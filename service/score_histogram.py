"""A histogram of the metrics that takes in the scores of an image at once."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class ScoreHistogram(Collector):
    """As prometheus_client's, which takes one value at a time: 100 of them took 0.15 ms.

    Args:
        help_text: what it shows, for the reader of the metrics.
        bounds: upper bounds of its buckets, rising; one without a bound follows.
    """

    def __init__(
        self, name: str, help_text: str, *, bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._help_text = help_text
        self._bounds = (*map(float, bounds), float("inf"))
        self._lock = threading.Lock()
        self._counts: dict[str, npt.NDArray[np.int64]] = defaultdict(self._nothing)  # by model
        self._sums: dict[str, float] = defaultdict(float)
        registry.register(self)

    def observe(self, scores: npt.NDArray[np.float32], *, model: str) -> None:
        """Count scores, of any number."""
        buckets = np.searchsorted(self._bounds, scores)
        counts = np.bincount(buckets, minlength=len(self._bounds))
        with self._lock:
            self._counts[model] += counts
            self._sums[model] += float(scores.sum(dtype=np.float64))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What is shown; see `prometheus_client`."""
        family = HistogramMetricFamily(self._name, self._help_text, labels=["model"])
        with self._lock:
            found = [(model, counts.tolist()) for model, counts in self._counts.items()]
            sums = dict(self._sums)
        names = [*(str(bound) for bound in self._bounds[:-1]), "+Inf"]
        for model, counts in found:
            buckets = list(zip(names, accumulate(counts), strict=True))
            family.add_metric([model], buckets, sums[model])
        yield family

    def _nothing(self) -> npt.NDArray[np.int64]:
        return np.zeros(len(self._bounds), np.int64)
