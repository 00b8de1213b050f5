"""Memory for request bodies: when it runs short, the client that holds the most gives way.

All state belongs to the event loop.
"""

import asyncio
from collections import Counter
from collections.abc import Hashable

from service.client_memory import ClientMemory
from service.errors import Overloaded

COPIES = 2  # of a body: while a form is parsed, its files exist twice


class Body:
    """The body of one request, and the memory that it holds."""

    def __init__(self, client: Hashable) -> None:
        self.client = client
        self.num_bytes = 0
        self.is_whole = False
        self.is_evicted = False
        self.wait: asyncio.Timeout | None = None  # while waiting for more of it


class BodyBudget:
    """Admits bodies piece by piece.

    When one client, or all together, would hold too much, the client that holds the most loses
    its largest unfinished body. Images of a client count as well where `memory` knows of them.

    Args:
        most_bytes: limit for all bodies together.
        client_bytes: limit for the bodies of one client.
        memory: limits everything that one client makes the service hold; by default, its bodies.
    """

    def __init__(
        self, most_bytes: int, *, client_bytes: int, memory: ClientMemory | None = None
    ) -> None:
        self._most_bytes = most_bytes
        self._client_bytes = client_bytes
        self._memory = memory or ClientMemory(client_bytes, decoding_bytes=client_bytes)
        self._bodies: dict[Hashable, set[Body]] = {}
        self._held: Counter[Hashable] = Counter()  # bytes of each client
        self._held_by_all = 0

    def open(self, client: Hashable) -> Body:
        """The body of a new request, still empty."""
        body = Body(client)
        self._bodies.setdefault(client, set()).add(body)
        return body

    def close(self, body: Body) -> None:
        """Release the memory of a body whose request was answered."""
        bodies = self._bodies.get(body.client, set())
        if body in bodies:
            bodies.remove(body)
            self._hold(body.client, -body.num_bytes)
        if not bodies:
            self._bodies.pop(body.client, None)
            self._held.pop(body.client, None)

    def take(self, body: Body, num_bytes: int) -> None:
        """Admit further bytes of a body.

        Raises:
            Overloaded: this body has to give way.
        """
        if body.is_evicted:
            raise self.refusal()
        body.num_bytes += COPIES * num_bytes
        self._hold(body.client, COPIES * num_bytes)
        while (client := self._greedy_client(body.client)) is not None:
            unfinished = [one for one in self._bodies[client] if not one.is_whole]
            victim = max(unfinished, key=lambda one: one.num_bytes, default=body)
            self._evict(victim)
            if victim is body:
                raise self.refusal()

    def settle(self, body: Body, num_bytes: int) -> None:
        """Count a body that was read by the files made from it, which are all that is left."""
        freed = max(0, body.num_bytes - num_bytes)
        body.num_bytes -= freed
        self._hold(body.client, -freed)

    def refusal(self) -> Overloaded:
        """The error for the client of an evicted body."""
        return Overloaded(
            "the request bodies in flight use all the memory reserved for them; send the "
            "request again, or smaller ones, or fewer at a time",
            retry_after_s=1,
        )

    def _greedy_client(self, client: Hashable) -> Hashable | None:
        """The client that has to give up a body, if any."""
        if self._held[client] > self._client_bytes or self._memory.is_exceeded(client):
            return client
        if self._held_by_all > self._most_bytes:
            return max(self._held, key=self._held.__getitem__)
        return None

    def _hold(self, client: Hashable, num_bytes: int) -> None:
        self._held[client] += num_bytes
        self._held_by_all += num_bytes
        self._memory.hold(client, num_bytes)

    def _evict(self, body: Body) -> None:
        body.is_evicted = True
        self.close(body)
        if body.wait is not None:
            body.wait.reschedule(asyncio.get_running_loop().time())
