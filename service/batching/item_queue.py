"""The items that wait for the engine, in buckets of like shape. Belongs to the event loop."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic

from service.batching.ticket import Entry, Item, Result, Ticket
from service.errors import DeadlineExceeded, ServiceError


class ItemQueue(Generic[Item, Result]):
    """Gives out places, keeps the items in them in order, and hands them out by the batch.

    Args:
        on_arrival: called when items have joined the queue.
        clock: monotonic seconds.
    """

    def __init__(self, on_arrival: Callable[[], None], *, clock: Callable[[], float]) -> None:
        self._on_arrival = on_arrival
        self._clock = clock
        self._buckets: dict[Hashable, OrderedDict[Entry[Item, Result], None]] = {}
        self._tickets: set[Ticket[Item, Result]] = set()
        self._num_added = 0
        self._all_left = asyncio.Event()
        self._all_left.set()
        self.depth = 0  # items that hold a place: admitted and not yet taken

    def admit(self, count: int, deadline: float | None) -> Ticket[Item, Result]:
        """Places for all items of a request; `deadline` is a time of the clock."""
        ticket: Ticket[Item, Result] = Ticket(self, count, deadline=deadline)
        self._tickets.add(ticket)
        self._all_left.clear()
        self.depth += count
        return ticket

    async def wait_until_all_left(self) -> None:
        """Return once no request holds a ticket."""
        await self._all_left.wait()

    def add(
        self,
        ticket: Ticket[Item, Result],
        items: Sequence[Item],
        buckets: Sequence[Hashable],
    ) -> asyncio.TimerHandle | None:
        """See `Places.add`."""
        now = self._clock()
        if ticket.is_late(now):
            raise DeadlineExceeded(
                "the deadline passed while the images were decoded, before the request could be "
                "queued; send fewer or smaller images"
            )
        for index, (item, bucket) in enumerate(zip(items, buckets, strict=True)):
            entry = Entry(ticket, index, item, bucket, self._num_added, now)
            self._num_added += 1
            ticket.entries.append(entry)
            self._buckets.setdefault(bucket, OrderedDict())[entry] = None
        self._on_arrival()
        if ticket.deadline is None:
            return None
        delay_s = max(0.0, ticket.deadline - now)
        return asyncio.get_running_loop().call_later(delay_s, ticket.expire)

    def forget(self, ticket: Ticket[Item, Result]) -> None:
        """See `Places.forget`."""
        for entry in ticket.entries:
            self._remove(entry)
        self.depth -= ticket.num_held
        ticket.num_held = 0
        self._tickets.discard(ticket)
        if not self._tickets:
            self._all_left.set()

    def fail_all(self, error: ServiceError) -> None:
        """Answer every request that holds a ticket with an error."""
        for ticket in list(self._tickets):
            ticket.fail(error)

    def oldest_bucket(self) -> Hashable | None:
        """The bucket whose head has waited longest, once heads past their deadline have left."""
        now = self._clock()
        while self._buckets:
            heads = [next(iter(bucket)) for bucket in self._buckets.values()]
            head = min(heads, key=lambda entry: entry.order)
            if not head.ticket.is_late(now):
                return head.bucket
            head.ticket.expire()
        return None

    def num_in(self, bucket: Hashable) -> int:
        """Items that wait in a bucket."""
        return len(self._buckets.get(bucket, ()))

    def take(self, bucket: Hashable, most: int) -> list[Entry[Item, Result]]:
        """Remove up to `most` items of a bucket, oldest first; late ones are expired instead."""
        now = self._clock()
        taken: list[Entry[Item, Result]] = []
        while self.num_in(bucket) and len(taken) < most:
            entry = next(iter(self._buckets[bucket]))
            if entry.ticket.is_late(now):
                entry.ticket.expire()
                continue
            self._remove(entry)
            entry.ticket.num_held -= 1
            self.depth -= 1
            taken.append(entry)
        # A request that expired above may have had earlier items in this very batch.
        return [entry for entry in taken if entry.ticket.is_alive]

    def _remove(self, entry: Entry[Item, Result]) -> None:
        bucket = self._buckets.get(entry.bucket)
        if bucket is not None:
            bucket.pop(entry, None)
            if not bucket:
                del self._buckets[entry.bucket]
