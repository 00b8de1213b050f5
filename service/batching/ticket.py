"""The place of one request in the queue, from its admission to its answer."""

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from service.errors import DeadlineExceeded, ServiceError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Entry(Generic[Item, Result]):
    """One item of a request."""

    ticket: "Ticket[Item, Result]"
    index: int
    item: Item
    bucket: Hashable
    order: tuple[int, int]  # over all buckets, smallest first: turn of its client, then arrival
    queued_at: float
    is_started: bool = False


class Places(Protocol[Item, Result]):
    """What a ticket needs from the queue that issued it."""

    def add(
        self,
        ticket: "Ticket[Item, Result]",
        items: Sequence[Item],
        *,
        buckets: Sequence[Hashable],
    ) -> asyncio.TimerHandle | None:
        """Queue the items of a ticket; the timer, if any, rings at its deadline."""

    def forget(self, ticket: "Ticket[Item, Result]") -> None:
        """Remove what is left of a ticket."""


class Ticket(Generic[Item, Result]):
    """The place of one request; a context manager, so that the place is always given back."""

    def __init__(
        self,
        places: Places[Item, Result],
        count: int,
        *,
        client: Hashable,
        deadline: float | None,
    ) -> None:
        self._places = places
        self.count = count
        self.client = client
        self.deadline = deadline  # a time on the clock
        self.is_alive = True  # someone still waits for the answer
        self.num_held = count  # items that still count as waiting
        self.entries: list[Entry[Item, Result]] = []
        self.wait_s = 0.0  # of the last item
        self.run_s = 0.0  # the longest of its batches
        self._results: dict[int, Result] = {}
        self._answer: asyncio.Future[None] | None = None
        self._failure: ServiceError | None = None

    async def run(self, items: Sequence[Item], buckets: Sequence[Hashable]) -> list[Result]:
        """Queue the items, one bucket each, and wait for all results, in their order.

        Raises:
            DeadlineExceeded: the deadline passed before the last item was started, perhaps even
                before the items were queued.
            EngineFailure: the engine failed on one of the items.
            NotReady: the engine was given up, perhaps before the items were queued.
        """
        if len(items) != self.count:
            raise ValueError(f"expected the {self.count} admitted items, got {len(items)}")
        if self._failure is not None:
            raise self._failure
        self._answer = asyncio.get_running_loop().create_future()
        timer = self._places.add(self, items, buckets=buckets)
        del items  # the queue has them, until they are part of a batch
        try:
            await self._answer
        finally:
            if timer is not None:
                timer.cancel()
        return [self._results[index] for index in range(self.count)]

    def is_late(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and self.deadline <= now

    def deliver(self, entry: Entry[Item, Result], outcome: Result | ServiceError) -> None:
        """Take the outcome of one item; the last one, or a failure, answers the request."""
        if isinstance(outcome, ServiceError):
            self.fail(outcome)
        elif self.is_alive:
            self._results[entry.index] = outcome
            if len(self._results) == self.count and self._answer and not self._answer.done():
                self._answer.set_result(None)

    def fail(self, error: ServiceError) -> None:
        """Answer the request with an error and take its waiting items out of the queue."""
        self._failure = error
        self.leave()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def expire(self) -> None:
        """Fail, unless the engine has started on every item: then the answer is near."""
        if not all(entry.is_started for entry in self.entries):
            self.fail(DeadlineExceeded("the deadline passed while the request was queued"))

    def leave(self) -> None:
        """Give the place back; items not yet started are dropped."""
        if self.is_alive:
            self.is_alive = False
            self._places.forget(self)
            self.entries = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave()
