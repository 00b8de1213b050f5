"""How long a run has taken, and when to end a run whose time is limited."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from model.config import TrainConfig
from model.training.training_state import Progress

Clock = Callable[[], float]  # seconds since some moment, as time.monotonic
EVALUATIONS_AT_THE_END = 3  # of the last epoch, the best one if another, that one with padding


@dataclass
class RunTime:
    """Counts all the time of a run in its progress, over all sessions.

    With `config.minutes`, the run ends if another step and the last evaluations would exceed it,
    judging by the mean of all steps so far and by the longest evaluation.
    """

    progress: Progress
    config: TrainConfig
    clock: Clock = time.monotonic
    _counted_until: float = field(init=False)

    def __post_init__(self) -> None:
        self._counted_until = self.clock()

    def count(self) -> float:
        """Add the seconds since the last call, or since the start, and return them."""
        now = self.clock()
        seconds = now - self._counted_until
        self._counted_until = now
        self.progress.seconds += seconds
        return seconds

    def count_step(self, part_seconds: Mapping[str, float]) -> None:
        """Count the time of the step that has just ended, also by part."""
        self.progress.step_seconds += self.count()
        self.count_parts(part_seconds)

    def count_parts(self, part_seconds: Mapping[str, float]) -> None:
        """Count the time of parts of steps, which that of whole steps already includes."""
        parts = self.progress.part_seconds
        for part, seconds in part_seconds.items():
            parts[part] = parts.get(part, 0.0) + seconds

    def count_evaluation(self) -> None:
        """Count the time of the evaluation that has just ended."""
        self.progress.evaluation_seconds = max(self.progress.evaluation_seconds, self.count())

    @property
    def used_share(self) -> float | None:
        """How much of the time for training has passed, 0 to 1; None if the run has no limit."""
        if self.config.minutes is None:
            return None
        return min(1.0, self.progress.total_seconds / max(self._seconds_for_training, 1e-9))

    @property
    def is_over(self) -> bool:
        """Whether the run ends before its next step, unless an epoch is still to be evaluated."""
        return self._is_over_after(self.progress.epoch)

    @property
    def is_evaluation_due(self) -> bool:
        """Whether the epoch whose steps have been taken is evaluated; the last one always is."""
        number = self.progress.epoch + 1
        is_turn = number == 1 or number % self.config.evaluate_every == 0
        return is_turn or self._is_over_after(number)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether too many epochs have passed since the best one."""
        return self._is_out_of_patience_after(self.progress.epoch)

    def _is_over_after(self, epoch: int) -> bool:
        if self._is_out_of_patience_after(epoch):
            return True
        if self.config.minutes is None:
            return epoch >= self.config.epochs
        pace = self.progress.step_seconds / max(1, self.progress.step)
        return self.progress.total_seconds + pace > self._seconds_for_training

    def _is_out_of_patience_after(self, epoch: int) -> bool:
        patience = self.config.patience
        return patience is not None and epoch - self.progress.best_epoch >= patience

    def epoch_name(self, number: int) -> str:
        """The name of the epoch with that number, counted from 1, for messages."""
        if self.config.minutes is None:
            return f"epoch {number}/{self.config.epochs}"
        share = self.progress.total_seconds / (self.config.minutes * 60)
        return f"epoch {number} ({share:.0%} of {self.config.minutes:g} min)"

    def left(self, steps_per_epoch: int) -> timedelta:
        """How long the run will take from now; if it has no limit, at the pace so far."""
        progress = self.progress
        if self.config.minutes is None:
            steps = self.config.epochs * steps_per_epoch - progress.step
            return timedelta(seconds=round(progress.seconds / progress.step * steps))
        return timedelta(seconds=round(self.config.minutes * 60 - progress.total_seconds))

    @property
    def _seconds_for_training(self) -> float:
        reserve = EVALUATIONS_AT_THE_END * self.progress.evaluation_seconds
        return (self.config.minutes or 0.0) * 60 - reserve
