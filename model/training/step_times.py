"""How the time of training is divided among the parts of its steps."""

import time
from collections.abc import Callable, Mapping

import torch

# In the order of a step. "loading" is the time that a step waits for its images.
PARTS = ("loading", "forward", "loss", "backward", "optimiser")
Lap = Callable[[str], None]  # is told the part that has just ended


class StepTimes:
    """Adds up seconds by part, from one call to the next.

    A GPU works behind the program, so its queue notes the time when it gets there.

    Args:
        clock: seconds since some moment, on a CPU.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._is_gpu = device.type == "cuda"
        self._clock = clock
        self._marks: list[tuple[str | None, float | torch.cuda.Event]] = []
        self.start()

    def start(self) -> None:
        """The next part begins now; the time since the last one belongs to no part."""
        self._mark(None)

    def lap(self, part: str) -> None:
        """A part, of `PARTS`, has just ended, and the next one begins."""
        self._mark(part)

    def take(self) -> dict[str, float]:
        """The seconds of every part since the last call.

        Nothing waits for a GPU: a part that it has not ended yet counts in a later call.
        """
        seconds = dict.fromkeys(PARTS, 0.0)
        while len(self._marks) > 1 and _is_reached(self._marks[1][1]):
            (_, before), (part, now) = self._marks[:2]
            if part is not None:
                seconds[part] += _elapsed_s(before, now)
            del self._marks[0]
        return seconds

    def take_all(self) -> dict[str, float]:
        """As `take`, once a GPU has ended all parts."""
        moment = self._marks[-1][1]
        if isinstance(moment, torch.cuda.Event):
            moment.synchronize()
        return self.take()

    def _mark(self, part: str | None) -> None:
        if not self._is_gpu:
            self._marks.append((part, self._clock()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((part, event))


def _is_reached(moment: float | torch.cuda.Event) -> bool:
    return not isinstance(moment, torch.cuda.Event) or moment.query()


def _elapsed_s(before: float | torch.cuda.Event, now: float | torch.cuda.Event) -> float:
    if isinstance(before, torch.cuda.Event):
        assert isinstance(now, torch.cuda.Event)
        return float(before.elapsed_time(now)) / 1e3
    assert not isinstance(now, torch.cuda.Event)
    return now - before


def ignore(part: str) -> None:
    """A `Lap` that measures nothing."""


def shown_shares(seconds: Mapping[str, float]) -> str:
    """The share of every part, as text."""
    total = sum(seconds.values()) or 1.0
    return ", ".join(f"{part} {value / total:.0%}" for part, value in seconds.items())
