"""Everything a run needs to continue where it stopped."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from model.config import TrainConfig
from model.network.deformable_detr import DeformableDetr
from model.training.precision import forward_dtype, loss_scaler
from model.training.schedule import MovingAverage, make_optimizer
from model.training.unread_step import UnreadStep


@dataclass
class Progress:
    """How far a run has progressed."""

    epoch: int = 0  # complete epochs, including evaluation
    step_in_epoch: int = 0  # optimiser steps of the current epoch
    step: int = 0  # optimiser steps of the run
    start_seconds: float = 0.0  # before step 1: loading or pre-training the first weights
    seconds: float = 0.0  # since then, over all sessions
    step_seconds: float = 0.0  # of these, in steps
    # Of the current epoch's steps, by part (`step_times.PARTS`).
    part_seconds: dict[str, float] = field(default_factory=dict)
    evaluation_seconds: float = 0.0  # of the longest evaluation
    loss_sum: float = 0.0  # of the steps of the current epoch
    best_epoch: int = 0  # counted from 1; 0 before the first evaluation
    best_value: float | None = None  # of the configuration's best_metric

    def end_epoch(self) -> None:
        """The current epoch is complete."""
        self.epoch, self.step_in_epoch, self.loss_sum = self.epoch + 1, 0, 0.0
        self.part_seconds = {}

    @property
    def mean_loss(self) -> float:
        """The loss of the current epoch's steps on average; NaN before the first."""
        return self.loss_sum / self.step_in_epoch if self.step_in_epoch else math.nan

    @property
    def total_seconds(self) -> float:
        """All the time of the run so far."""
        return self.start_seconds + self.seconds


@dataclass
class TrainingState:
    """What training changes.

    Attributes:
        average: None if the configuration has no ema_decay.
        unread: the last step, until `optimiser_step.finish_step`.
    """

    model: DeformableDetr
    average: MovingAverage | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    unread: UnreadStep | None = None

    @classmethod
    def start(cls, model: DeformableDetr, config: TrainConfig) -> "TrainingState":
        """The state before step 1."""
        average = None if config.ema_decay is None else MovingAverage(model, config.ema_decay)
        device = next(model.parameters()).device
        scaler = loss_scaler(forward_dtype(config, device), device)
        return cls(model, average, make_optimizer(model.named_parameters(), config), scaler)

    @property
    def evaluated_model(self) -> DeformableDetr:
        """The model to evaluate and keep: the moving average if there is one."""
        return self.model if self.average is None else self.average.model

    @property
    def is_between_steps(self) -> bool:
        """Whether no step is half applied: every weight has had as many updates as counted."""
        counts = [float(values["step"]) for values in self.optimizer.state.values()]
        return max(counts, default=self.progress.step) == self.progress.step

    def content(self) -> dict[str, Any]:
        """All of it, as `restore` takes it."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore what a state file holds."""
        self.model.load_state_dict(saved["model"])
        if self.average is not None:
            self.average.model.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved.get("scaler", {}))  # earlier files have none, nor need it
        self.progress = Progress(**saved["progress"])
