"""Limits the number of connections: at the limit, one makes room for a new one.

The one that has been idle longest does. If none is idle, it is one that waits for its client in the
middle of a request, provided that client holds more of them than the new one.
"""

import logging
import resource
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)

OTHER_DESCRIPTORS = 128  # for everything but connections: files of the bundle, libraries, threads
WARNING_INTERVAL_S = 10.0


class Connection(Protocol):
    """A connection that waits for its client."""

    @property
    def counted_client(self) -> str | None:
        """Whom its client counts with."""

    def evict(self) -> None:
        """Close the connection to make room."""


class ConnectionTable:
    """The connections that wait for their clients, the one that has waited longest first.

    Args:
        most: how many connections may be open.
        clock: monotonic seconds.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._idle: OrderedDict[Connection, None] = OrderedDict()
        self._unfinished: dict[str | None, OrderedDict[Connection, None]] = {}  # by client
        self._warned_at = -WARNING_INTERVAL_S

    def has_room(self, num_open: int, client: str | None = None) -> bool:
        """Whether a new connection may stay; at the limit, another one is closed for it.

        Args:
            num_open: how many connections are open, with the new one.
            client: whom its client counts with.
        """
        if num_open <= self.most:
            return True
        self._warn()
        one = next(iter(self._idle), None) or self._of_greediest(client)
        if one is None:
            return False
        self.remove(one)
        one.evict()
        return True

    def add_idle(self, connection: Connection) -> None:
        """Note that a connection now waits for its next request."""
        self.remove(connection)
        self._idle[connection] = None

    def add_unfinished(self, connection: Connection) -> None:
        """Note that a connection waits for its client in the middle of a request, or for a turn."""
        self.remove(connection)
        self._unfinished.setdefault(connection.counted_client, OrderedDict())[connection] = None

    def remove(self, connection: Connection) -> None:
        """Note that a connection no longer waits for its client, or is lost."""
        self._idle.pop(connection, None)
        ones = self._unfinished.get(connection.counted_client, OrderedDict())
        ones.pop(connection, None)
        if not ones:
            self._unfinished.pop(connection.counted_client, None)

    def _of_greediest(self, client: str | None) -> Connection | None:
        """Of the client with most unfinished ones, if it keeps as many of them as `client` gets."""
        ones = max(self._unfinished.values(), key=len, default=OrderedDict())
        num_own = len(self._unfinished.get(client, ()))
        return next(iter(ones)) if len(ones) - 1 >= num_own + 1 else None

    def _warn(self) -> None:
        if self._clock() - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = self._clock()
            logger.warning(
                "the limit of open connections, %d, is reached: idle ones are closed for new ones, "
                "then unfinished ones of the client with most; DETR_MAX_CONNECTIONS changes the "
                "limit",
                self.most,
            )


def possible_connections(wanted: int) -> int:
    """How many of the wanted connections the file descriptors allow, after raising their limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            possible = max(1, soft - OTHER_DESCRIPTORS)
            logger.warning(
                "%d file descriptors are allowed, which limits connections to %d, not %d; raise "
                "the limit with ulimit -n",
                soft,
                possible,
                wanted,
            )
            return possible
    return wanted
