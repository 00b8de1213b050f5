"""Turns of pipelined requests: one is started at a time, however many connections send them.

Otherwise the event loop would start one on every connection before it looks at other clients.
"""

import asyncio
from collections import deque
from collections.abc import Callable


class Turns:
    """Calls that wait until the event loop has looked at everything else. Belongs to the loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, call: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Call it in a later iteration of the loop, after those added before it."""
        self._waiting.append(call)
        if len(self._waiting) == 1:
            loop.call_soon(self._take_one, loop)

    def _take_one(self, loop: asyncio.AbstractEventLoop) -> None:
        call = self._waiting[0]
        try:
            call()
        finally:
            self._waiting.popleft()
            if self._waiting:
                loop.call_soon(self._take_one, loop)
