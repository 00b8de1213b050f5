"""Limits the number of connections: at the limit, an idle one is closed for a new one."""

import logging
import resource
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)

OTHER_DESCRIPTORS = 128  # for everything but connections: files of the bundle, libraries, threads
WARNING_INTERVAL_S = 10.0


class Waiting(Protocol):
    """A connection that has no request in progress."""

    def evict(self) -> None:
        """Close the connection to make room."""


class ConnectionTable:
    """The idle connections, the one that has waited longest first.

    Args:
        most: how many connections may be open.
        clock: monotonic seconds.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._waiting: OrderedDict[Waiting, None] = OrderedDict()
        self._warned_at = -WARNING_INTERVAL_S

    def has_room(self, num_open: int) -> bool:
        """Whether a new connection may stay; at the limit, an idle one is closed for it."""
        if num_open <= self.most:
            return True
        self._warn()
        if not self._waiting:
            return False
        oldest, _ = self._waiting.popitem(last=False)
        oldest.evict()
        return True

    def add(self, connection: Waiting) -> None:
        """Note that a connection now waits for its next request."""
        self._waiting[connection] = None
        self._waiting.move_to_end(connection)

    def remove(self, connection: Waiting) -> None:
        """Note that a connection received a request or was closed."""
        self._waiting.pop(connection, None)

    def _warn(self) -> None:
        if self._clock() - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = self._clock()
            logger.warning(
                "%d connections are open, which is the limit: idle ones are "
                "closed for new ones; DETR_MAX_CONNECTIONS changes the limit",
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
                "%d file descriptors are allowed: at most %d connections, not %d; raise the limit "
                "with ulimit -n",
                soft,
                possible,
                wanted,
            )
            return possible
    return wanted
