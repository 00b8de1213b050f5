"""The numbers of an epoch, for the curves and for metrics.csv."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model.evaluation.coco_metrics import Metrics
from model.evaluation.epoch_table import CSV_FILE, append_epoch
from model.training.board import Board, record


@dataclass(frozen=True)
class EpochRecord:
    """A complete epoch and its evaluation.

    Attributes:
        seconds: of the whole run so far.
        learning_rate: of the last step. training_loss: the mean over the epoch's steps.
        part_seconds: of the epoch's steps, by part (`step_times.PARTS`).
    """

    epoch: int
    step: int
    seconds: float
    learning_rate: float
    training_loss: float
    validation_loss: float
    metrics: Metrics
    part_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def class_ap(self) -> dict[str, float]:
        """AP by the name of the class; NaN for classes without boxes."""
        return {one.info.name: one.ap for one in self.metrics.per_class}

    def row(self) -> dict[str, float]:
        """Every number by its column in metrics.csv; NaN if there is none."""
        return {
            "epoch": self.epoch, "step": self.step, "seconds": round(self.seconds, 1),
            "learning_rate": self.learning_rate, "training_loss": self.training_loss,
            "validation_loss": self.validation_loss, **self.metrics.numbers,
            **{f"{part}_s": round(seconds, 3) for part, seconds in self.part_seconds.items()},
            **{f"AP {name}": ap for name, ap in self.class_ap.items()},
        }  # fmt: skip


def write_record(entry: EpochRecord, out_dir: Path, *, board: Board | None) -> None:
    """Add the epoch to OUT/metrics.csv and to the curves, unless `board` is None.

    Raises:
        ValueError: metrics.csv holds something else.
        OSError: it cannot be written; its previous version is intact.
    """
    if board is None:
        return
    values = {**entry.metrics.numbers, "loss": entry.validation_loss}
    record(board, "validation", values=_defined(values), step=entry.step)
    record(board, "validation AP by class", values=_defined(entry.class_ap), step=entry.step)
    record(board, "seconds of an epoch", values=entry.part_seconds, step=entry.step)
    append_epoch(out_dir / CSV_FILE, entry.row())


def _defined(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not math.isnan(value)}
