"""Starts a run: from its own saved state, or from step 1 with a batch size that fits."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.config import TrainConfig
from model.data.loading import RunData, largest_images, parts_per_batch
from model.distributed import alone, is_main, num_processes
from model.training.batch_memory import Measure, plan_batch
from model.training.best_checkpoint import recover_best
from model.training.carried_curves import carry_curves
from model.training.fingerprint import run_fingerprint, with_saved_batch
from model.training.losses import require_class_weights
from model.training.run_directory import STATE_FILE
from model.training.starting_weights import Fetch, check_start
from model.training.state_file import read_last_state, read_training_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """The configuration with its batch size, and the saved state to continue from, if any.

    Attributes:
        path: the file of `saved`.
    """

    config: TrainConfig
    saved: dict[str, Any] | None = None
    path: Path | None = None

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return 0 if self.saved is None else int(self.saved["progress"]["step"])

    def is_from(self, path: Path) -> bool:
        """Whether `saved` was read from this file."""
        return self.path is not None and self.path.resolve() == path.resolve()


def find_start(
    config: TrainConfig,
    data: RunData,
    *,
    out_dir: Path,
    resume: str,
    init: Path | None,
    device: torch.device,
    measure: Measure | None,
    fetch: Fetch | None,
) -> RunStart:
    """Find out in the main process; the others find nothing.

    Args:
        out_dir, resume, init, measure, fetch: as in `model.training.loop.train`.

    Raises:
        ValueError: configuration, starting weights, the saved run and the number of processes do
            not fit together.
        MemoryRanOut: not even one image fits.
    """
    if not is_main():
        return RunStart(config)
    require_class_weights(config.loss, [info.name for info in data.classes])
    fingerprint = run_fingerprint(config, data.summary)
    path, saved = _find_state(out_dir, resume, fingerprint)
    if saved is None or path is None:
        check_start(config, init, fetch=fetch)
        config = _with_batch(config, data, device, measure)
    else:
        config = with_saved_batch(config, saved)
        recover_best(saved, out_dir=out_dir, state_path=path)
        carry_curves(saved, out_dir=out_dir, state_path=path)
    parts_per_batch(config, num_processes())  # refuses steps that leave a process without images
    if saved is not None and init is not None:
        log.warning("ignoring INIT= (--init) %s: the weights come from %s", init, path)
    return RunStart(config, saved, path)


def _find_state(
    out_dir: Path, resume: str, fingerprint: dict[str, Any]
) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
    if resume == "auto":
        return read_last_state(out_dir / STATE_FILE, fingerprint)
    return Path(resume), read_training_state(Path(resume), fingerprint)


def _with_batch(
    config: TrainConfig, data: RunData, device: torch.device, measure: Measure | None
) -> TrainConfig:
    size_px = largest_images(data.train, config)
    with alone():
        memory = measure(config, size_px, device=device) if measure else None
    return plan_batch(config, memory, size_px=size_px)
