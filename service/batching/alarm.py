"""An alarm for work that hangs."""

import asyncio
from collections.abc import Callable

_STEPS = 10  # a process that was paused misses only one of them


class Alarm:
    """Calls `ring` after some seconds, unless it is stopped before. Belongs to the event loop."""

    def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
        self._step_s = seconds / _STEPS
        self._ring = ring
        self._wind(_STEPS)

    def stop(self) -> None:
        """The work has ended; nothing of it is kept."""
        self._timer.cancel()
        self._ring = _ring_not

    def _wind(self, steps_left: int) -> None:
        if not steps_left:
            self._ring()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._step_s, self._wind, steps_left - 1)


def _ring_not() -> None:
    pass
