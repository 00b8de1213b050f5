"""Which epoch of a run is the best so far, by the metric that the configuration names."""

import math
from pathlib import Path

from model.config import TrainConfig
from model.training.epoch_record import EpochRecord
from model.training.run_directory import BEST
from model.training.training_state import Progress


def count_epoch(progress: Progress, config: TrainConfig, *, entry: EpochRecord) -> bool:
    """Count a complete epoch; returns whether it is the best one so far.

    An epoch without a value, because there was no such box to evaluate on, counts as the best.
    """
    value = {**entry.metrics.numbers, "loss": entry.validation_loss}[config.best_metric]
    sign = -1 if config.best_metric == "loss" else 1
    best = progress.best_value
    is_best = best is None or math.isnan(value) or sign * value > sign * best
    progress.end_epoch()
    if is_best:
        progress.best_epoch = entry.epoch
        progress.best_value = best if math.isnan(value) else value
    return is_best


def shown_best(progress: Progress, config: TrainConfig) -> str:
    """The best epoch as text."""
    if progress.best_value is None:
        return "the last epoch"
    name = "validation loss" if config.best_metric == "loss" else config.best_metric
    return f"best {name} {progress.best_value:.3f}"


def shown_end(progress: Progress, config: TrainConfig, *, out_dir: Path) -> str:
    """What a complete run has reached, and where it is."""
    done, best = f"{out_dir}: done with epoch {progress.epoch}", out_dir / BEST
    if not best.exists():  # it was deleted after the last epoch
        return f"{done}, but its checkpoints are lost: a run of more epochs writes new ones"
    return (
        f"{done}, {shown_best(progress, config)} in {best}; another OUT= (--out) starts a new run"
    )


def kept_name(epoch: int) -> str:
    """The file of an epoch's own checkpoint, if the configuration keeps those."""
    return f"epoch-{epoch:04d}.safetensors"


def drop_old_checkpoints(out_dir: Path, epoch: int, *, keep_last: int) -> None:
    """Delete checkpoints of single epochs but the last `keep_last`; none if that is 0.

    Those of later epochs, which an earlier run left, are not touched.
    """
    if keep_last:
        names = (kept_name(number) for number in range(epoch, 0, -1))
        existing = [path for path in map(out_dir.joinpath, names) if path.exists()]
        for path in existing[keep_last:]:
            path.unlink()
