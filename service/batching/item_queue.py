"""The items that wait for the engine, in buckets by shape. Belongs to the event loop.

Clients take turns, one item each. The items of a client get consecutive turns, and another client
starts at the current turn, so a client with many items delays only itself.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic

from service.batching.ticket import Entry, Item, Result, Ticket
from service.errors import DeadlineExceeded, ServiceError


class ItemQueue(Generic[Item, Result]):
    """Admits requests, keeps their items in order, and hands them out in batches.

    Args:
        on_arrival: called with their number when items have joined the queue.
        clock: monotonic seconds.
    """

    def __init__(self, on_arrival: Callable[[int], None], *, clock: Callable[[], float]) -> None:
        self._on_arrival = on_arrival
        self._clock = clock
        self._buckets: dict[Hashable, OrderedDict[Entry[Item, Result], None]] = {}
        self._tickets: dict[Ticket[Item, Result], None] = {}  # in the order of their admission
        self._num_added = 0
        self._next_turn = 0  # of a client that comes when nothing waits
        self._last_turns: dict[Hashable, int] = {}  # of the items of each client that has places
        self._num_held: Counter[Hashable] = Counter()  # places of each client
        self._all_left = asyncio.Event()
        self._all_left.set()
        self.depth = 0  # items that hold a place: admitted and not yet taken

    def admit(
        self, count: int, *, client: Hashable, deadline: float | None
    ) -> Ticket[Item, Result]:
        """A ticket for all items of a request; `deadline` is a time on the clock."""
        ticket: Ticket[Item, Result] = Ticket(self, count, client=client, deadline=deadline)
        self._tickets[ticket] = None
        self._all_left.clear()
        self._hold(client, count)
        return ticket

    def num_ahead(self, client: Hashable, count: int) -> int:
        """How many items are taken before the last of `count` further items of a client.

        Every other client gets as many turns as this one needs, unless it has fewer items.
        """
        own = self._num_held[client]
        others = sum(
            min(held, own + count) for other, held in self._num_held.items() if other != client
        )
        return own + others + count - 1

    def giving_way(
        self, client: Hashable, count: int, *, num_missing: int
    ) -> list[Ticket[Item, Result]] | None:
        """The requests that give `num_missing` places to one of a client; None if they have fewer.

        Each is the newest of the client with the most places then. It can give way if nothing of it
        was taken, and if this client would still have fewer places than the other after adding
        `count`.
        """
        held, found = self._num_held.copy(), []
        untouched = [ticket for ticket in self._tickets if ticket.num_held == ticket.count]
        while num_missing > 0:
            other, most = max(held.items(), key=lambda item: item[1], default=(client, 0))
            ticket = next((one for one in reversed(untouched) if one.client == other), None)
            if ticket is None or most <= held[client] + count:
                return None
            untouched.remove(ticket)
            found.append(ticket)
            held[other] -= ticket.count
            num_missing -= ticket.count
        return found

    async def wait_until_all_left(self) -> None:
        """Return once no request holds a ticket."""
        await self._all_left.wait()

    def add(
        self,
        ticket: Ticket[Item, Result],
        items: Sequence[Item],
        *,
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
            entry = Entry(ticket, index, item, bucket, self._take_turn(ticket.client), now)
            ticket.entries.append(entry)
            self._buckets.setdefault(bucket, OrderedDict())[entry] = None
        self._on_arrival(len(items))
        if ticket.deadline is None:
            return None
        delay_s = max(0.0, ticket.deadline - now)
        return asyncio.get_running_loop().call_later(delay_s, ticket.expire)

    def forget(self, ticket: Ticket[Item, Result]) -> None:
        """See `Places.forget`."""
        for entry in ticket.entries:
            self._remove(entry)
        self._hold(ticket.client, -ticket.num_held)
        self._tickets.pop(ticket, None)
        if not self._tickets:
            self._all_left.set()

    def fail_all(self, error: ServiceError) -> None:
        """Answer every request that holds a ticket with an error."""
        for ticket in list(self._tickets):
            ticket.fail(error)

    def oldest_bucket(self) -> Hashable | None:
        """The bucket of the item whose turn it is, once those past their deadline have left."""
        now = self._clock()
        while (head := self._head()) is not None:
            if not head.ticket.is_late(now):
                return head.bucket
            head.ticket.expire()
        return None

    def num_in(self, bucket: Hashable) -> int:
        """The number of items waiting in a bucket."""
        return len(self._buckets.get(bucket, ()))

    @property
    def num_buckets(self) -> int:
        """The number of shapes that wait."""
        return len(self._buckets)

    def take(self, bucket: Hashable, most: int) -> list[Entry[Item, Result]]:
        """Remove up to `most` items of a bucket, in turn; late ones are expired instead."""
        now = self._clock()
        taken: list[Entry[Item, Result]] = []
        for entry in sorted(self._buckets.get(bucket, ()), key=_order):
            if len(taken) == most:
                break
            if not entry.ticket.is_alive:
                continue  # it expired with an item before
            if entry.ticket.is_late(now):
                entry.ticket.expire()
                continue
            self._next_turn = max(self._next_turn, entry.order[0] + 1)
            self._remove(entry)
            entry.ticket.num_held -= 1
            self._hold(entry.ticket.client, -1)
            taken.append(entry)
        # A request that expired above may have earlier items in this same batch.
        return [entry for entry in taken if entry.ticket.is_alive]

    def _take_turn(self, client: Hashable) -> tuple[int, int]:
        head = self._head()
        first = head.order[0] if head is not None else self._next_turn
        turn = max(first, self._last_turns.get(client, -1) + 1)
        self._last_turns[client] = turn
        self._num_added += 1
        return turn, self._num_added

    def _head(self) -> Entry[Item, Result] | None:
        entries = (entry for bucket in self._buckets.values() for entry in bucket)
        return min(entries, key=_order, default=None)

    def _hold(self, client: Hashable, count: int) -> None:
        self.depth += count
        self._num_held[client] += count
        if not self._num_held[client]:
            del self._num_held[client]
            self._last_turns.pop(client, None)

    def _remove(self, entry: Entry[Item, Result]) -> None:
        bucket = self._buckets.get(entry.bucket)
        if bucket is not None:
            bucket.pop(entry, None)
            if not bucket:
                del self._buckets[entry.bucket]


def _order(entry: Entry[Item, Result]) -> tuple[int, int]:
    return entry.order
