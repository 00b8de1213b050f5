"""A step that was taken on the device, and whose figures the host has yet to read."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import TrainConfig
from model.data.collate import MicroBatch


class StepFigures(NamedTuple):
    """What a step found.

    Attributes:
        step: its number, counted from 1 over the run.
        values: every weighted loss term, their sum as "loss", and "gradient_norm" before clipping.
    """

    step: int
    values: dict[str, float]


Report = Callable[[StepFigures], None]


def ignore_figures(figures: StepFigures) -> None:
    """A `Report` that does nothing."""


class LossTerms(NamedTuple):
    """The loss terms of a step, in the order of `loss_names`, on the device.

    parts: (P, T), of each forward pass of this process. total: (T,), of those of all processes.
    """

    parts: Tensor
    total: Tensor


@dataclass
class UnreadStep:
    """What it takes to read a step's figures, and to say what is wrong with them.

    Attributes:
        figures: (T + 1,), the loss terms and the norm of the gradient, on the device.
        part_terms: as in `LossTerms`.
        buffers: the model's before the step.
    """

    step: int
    batches: list[MicroBatch]
    figures: Tensor
    part_terms: Tensor
    config: TrainConfig
    dtype: torch.dtype
    buffers: list[Tensor]
    report: Report
    _copy: Tensor = field(init=False)
    _is_copied: torch.cuda.Event | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._copy = self.figures.to("cpu", non_blocking=True)
        if self.figures.is_cuda:
            self._is_copied = torch.cuda.Event()
            self._is_copied.record()

    @property
    def is_bad(self) -> Tensor:
        """(), float32, on the device: 1 if a figure is not finite, else 0."""
        return 1 - self.figures.isfinite().all().float()

    def read(self) -> list[float]:
        """The figures; waits until a GPU has computed them."""
        if self._is_copied is not None and not self._is_copied.query():
            self._is_copied.synchronize()
        return self._copy.tolist()
