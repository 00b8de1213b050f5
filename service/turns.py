"""Turns of requests: one is started at a time, of each client in turn.

Otherwise the event loop would start one on every connection before it looks at other clients, and
a client with a thousand connections would keep everyone else waiting for a thousand answers.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable

Calls = OrderedDict[Hashable, Callable[[], None]]  # by connection, the first one first


class Turns:
    """Calls of which each iteration of the event loop makes one. Belongs to the loop."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, Calls] = OrderedDict()  # by client, the next one first
        self._is_taken = False  # in this iteration

    def add(
        self,
        connection: Hashable,
        call: Callable[[], None],
        *,
        client: Hashable,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Call it now, or once it is its turn: after those of this client that were added before.

        Between two calls of one client, every other one that waits has a turn. A connection has one
        call at a time.
        """
        self._waiting.setdefault(client, OrderedDict())[connection] = call
        if not self._is_taken:
            self._take_one(loop)

    def remove(self, connection: Hashable, *, client: Hashable) -> None:
        """Forget the call of a connection that is lost."""
        calls = self._waiting.get(client)
        if calls is not None:
            calls.pop(connection, None)
            if not calls:
                del self._waiting[client]

    def _take_one(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_taken = bool(self._waiting)
        if not self._is_taken:
            return
        loop.call_soon(self._take_one, loop)
        client, calls = self._waiting.popitem(last=False)
        _, call = calls.popitem(last=False)
        if calls:
            self._waiting[client] = calls
        call()
