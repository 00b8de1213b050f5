"""Learns how many clients come back with another item after their answers, and how soon."""

from collections.abc import Hashable
from typing import NamedTuple

from service.batching.batch_times import SMOOTHING, Line

MIN_SHARE = 0.8  # of a batch that must come back for its clients to count as a closed loop


class _Watched(NamedTuple):
    """A batch that was answered; items that arrive after it count as its clients coming back."""

    bucket: Hashable
    size: int
    answered_at: float


class Returns:
    """Watches what arrives after each batch, up to the number of items it had.

    In a closed loop of N clients with batches of up to N, half of the clients can wait forever
    while the engine works for the other half: two runs instead of one. Waiting for the others ends
    this, and pays if they come back in less time than an additional run would take.
    """

    def __init__(self) -> None:
        self._share = 0.0  # of a batch that comes back
        self._delays_s = Line()  # by size, until the last of them is back
        self._watched: _Watched | None = None
        self._num_back = 0

    def answer(self, size: int, bucket: Hashable, *, now: float) -> None:
        """A batch was answered."""
        self.give_up(now)
        self._watched, self._num_back = _Watched(bucket, size, now), 0

    def arrive(self, count: int, now: float) -> None:
        """Items have joined the queue."""
        watched = self._watched
        if watched is None or self._num_back >= watched.size:
            return
        self._num_back += count
        if self._num_back >= watched.size:
            self._learn(now)

    def give_up(self, now: float) -> None:
        """Expect no more of the last batch's clients to come back."""
        if self._watched is not None and self._num_back < self._watched.size:
            self._learn(now)
        self._watched = None

    def missing(self, bucket: Hashable) -> int:
        """How many items have yet to come back into a bucket after the last batch."""
        watched = self._watched
        if watched is None or watched.bucket != bucket:
            return 0
        return max(0, self.share_of(watched.size) - self._num_back)

    def share_of(self, size: int) -> int:
        """How many of a batch of this size come back; 0 unless nearly all do."""
        return round(self._share * size) if self._share >= MIN_SHARE else 0

    def delay_s(self, size: int) -> float:
        """Seconds after the answer to a batch of this size within which all are nearly always back.

        Learnt from recent batches of all sizes, since larger ones take longer to come back.
        """
        return self._delays_s.at(size) + 2 * self._delays_s.deviation

    def elapsed_s(self, now: float) -> float:
        """Seconds since the last answer."""
        return float("inf") if self._watched is None else now - self._watched.answered_at

    def _learn(self, now: float) -> None:
        assert self._watched is not None
        share = min(1.0, self._num_back / self._watched.size)
        delay_s = now - self._watched.answered_at
        self._delays_s.add(self._watched.size, delay_s)
        self._share += SMOOTHING * (share - self._share)
