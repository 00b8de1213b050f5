"""Everything a run needs to continue where it stopped, in memory and in one file."""

import dataclasses
import io
import logging
import math
import zipfile
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.checkpoint_file import write_whole
from model.config import TrainConfig
from model.network.deformable_detr import DeformableDetr
from model.training.precision import forward_dtype, loss_scaler
from model.training.schedule import MovingAverage, make_optimizer

FORMAT_VERSION = 2
BATCH_FIELDS = ("batch_size", "accumulation_steps")
# Settings that change the speed, length and files of a run, but no step.
_CHANGE_NO_STEP = ("num_workers", "num_threads", "patience", "keep_last")
_NOT_COMPARED = (*_CHANGE_NO_STEP, "fit_batch")  # the last is replaced by what was chosen
_DATA_NAMES = ("dataset", "train_annotations", "val_annotations")
log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run has progressed."""

    epoch: int = 0  # complete epochs, including evaluation
    step_in_epoch: int = 0  # optimiser steps of the current epoch
    step: int = 0  # optimiser steps of the run
    start_seconds: float = 0.0  # before step 1: loading or pre-training the first weights
    seconds: float = 0.0  # since then, over all sessions
    step_seconds: float = 0.0  # of these, in steps
    evaluation_seconds: float = 0.0  # of the longest evaluation
    loss_sum: float = 0.0  # of the steps of the current epoch
    best_epoch: int = 0  # counted from 1; 0 before the first evaluation
    best_value: float | None = None  # of the configuration's best_metric

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
    """What training changes. `average` is None if the configuration has no ema_decay."""

    model: DeformableDetr
    average: MovingAverage | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)

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

    def save(self, path: Path, fingerprint: dict[str, Any]) -> None:
        """Write all of it atomically.

        The previous file is kept, see `previous`. If the disk is full, raises OSError and leaves
        existing files intact.
        """
        content = io.BytesIO()  # torch's own writer aborts on a full disk; plain writing raises
        torch.save(
            {
                "format_version": FORMAT_VERSION,
                "model": self.model.state_dict(),
                "average": None if self.average is None else self.average.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "progress": dataclasses.asdict(self.progress),
                "fingerprint": fingerprint,
            },
            content,
        )
        new = path.with_name(f"new.{path.name}")
        write_whole(new, content.getvalue())
        if path.exists():
            path.replace(previous(path))
        new.replace(path)

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore what `read_training_state` read."""
        self.model.load_state_dict(saved["model"])
        if self.average is not None:
            self.average.model.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved.get("scaler", {}))  # earlier files have none, nor need it
        self.progress = Progress(**saved["progress"])


class DamagedState(ValueError):
    """A file is damaged or not a training state."""


def previous(path: Path) -> Path:
    """The file that keeps the state before the one in `path`."""
    return path.with_name(f"previous.{path.name.removeprefix('last.')}")


def read_last_state(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """Read the training state in `path`, or the one before if that is damaged.

    None if there is neither. Raises ValueError as `read_training_state` does.
    """
    if not path.exists() and not previous(path).exists():
        return None
    try:
        return read_training_state(path, fingerprint)
    except DamagedState as error:
        if not previous(path).exists():
            raise
        log.warning("%s; continuing from the state before it, %s", error, previous(path))
    return read_training_state(previous(path), fingerprint)


def read_training_state(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The content of a state file that this run may continue.

    A run may be made longer (more epochs or minutes), the same data may be renamed, and
    batch_size=auto continues with the size that was chosen.

    Raises:
        DamagedState: no such file, or not a training state.
        ValueError: saved by a run with another configuration or data set; names what differs.
    """
    if not path.is_file():
        raise DamagedState(f"there is no {path} to resume from; RESUME=auto (--resume) starts over")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not verify its checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"wrong checksum of {damaged}")
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = saved["format_version"]
    except Exception as error:  # torch raises half a dozen types on a file it cannot read
        raise DamagedState(
            f"{path} is damaged or not a training state ({type(error).__name__}: {error})"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}, this version reads {FORMAT_VERSION}")
    before, now = _comparable(saved["fingerprint"]), _comparable(fingerprint)
    before["config"] = _filled(before["config"], _plain(dataclasses.asdict(TrainConfig(name=""))))
    for length in ("epochs", "minutes"):
        ours, theirs = now["config"][length], before["config"].get(length)
        if ours is not None and theirs is not None and ours > theirs:
            log.info(
                "%s %s instead of %s: the learning rates to come are those of the longer run",
                *(ours, length, theirs),
            )
            before["config"][length] = ours
    if fingerprint["config"]["fit_batch"] and _effective_batch(before) == _effective_batch(now):
        now["config"] |= {name: before["config"][name] for name in BATCH_FIELDS}
    if lines := _differences(before, now):
        raise ValueError(
            f"{path} was saved by another run and cannot be continued by this one:\n  "
            + "\n  ".join(lines)
            + "\ngo back to the saved values, or start over with another OUT= (--out)"
        )
    return saved


def _comparable(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A copy without the names of data whose hashes are compared."""
    data = {key: value for key, value in fingerprint["data"].items() if key not in _DATA_NAMES}
    config = {k: v for k, v in fingerprint["config"].items() if k not in _NOT_COMPARED}
    return {"config": config, "data": data}


def _filled(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Saved settings, with the defaults of those that did not exist yet when they were saved."""
    filled = dict(saved)
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(saved.get(name), dict):
            filled[name] = _filled(saved[name], value)
        elif name not in saved and name not in _NOT_COMPARED:
            filled[name] = value
    return filled


def _effective_batch(fingerprint: dict[str, Any]) -> int:
    return math.prod(fingerprint["config"][name] for name in BATCH_FIELDS)


def with_saved_batch(config: TrainConfig, saved: dict[str, Any]) -> TrainConfig:
    """The configuration with the batch size that was chosen when the saved run began."""
    if not config.fit_batch:
        return config
    fields = saved["fingerprint"]["config"]
    chosen = {name: fields[name] for name in BATCH_FIELDS}
    return dataclasses.replace(config, **chosen, fit_batch=False)


def run_fingerprint(config: TrainConfig, data_summary: dict[str, Any]) -> dict[str, Any]:
    """Plain values that decide what a run computes; only a run with the same may continue it."""
    values = _plain(dataclasses.asdict(config))
    for name in _CHANGE_NO_STEP:
        del values[name]
    return {"config": values, "data": _plain(data_summary)}


def _differences(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines like "config.epochs: 10 saved, 20 now" for all that differs."""
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            lines.append(f"{prefix}{key}: {before!r} saved, {now!r} now")
    return lines


def _plain(value: Any) -> Any:
    """`value` as dicts, lists, str, int, float and None only, which weights_only can read."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "model_dump"):  # pydantic: the preprocessing
        return _plain(value.model_dump())
    return value
