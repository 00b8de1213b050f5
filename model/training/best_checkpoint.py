"""The best checkpoint of a continued run: it has to be in OUT, or another one is chosen."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.checkpoints.checkpoint_file import Checkpoint, load_checkpoint, write_whole
from model.training.fingerprint import is_same_run, run_fingerprint
from model.training.run_directory import BEST, LAST

log = logging.getLogger(__name__)


def recover_best(saved: dict[str, Any], *, out_dir: Path, state_path: Path) -> None:
    """Make sure that OUT/best.safetensors is the best of this run that exists.

    If it is missing, damaged or of another run, it is copied from beside the saved state. If it
    is lost there, too, the best of the other checkpoints takes its place, or else the next epoch.

    Args:
        saved: a training state; its best epoch is changed to the one that was found.
        state_path: the file it was read from.
    """
    progress = saved["progress"]
    lost = progress["best_epoch"]
    if lost == 0:
        return
    metric = saved["fingerprint"]["config"]["best_metric"]
    directories = dict.fromkeys(path.resolve() for path in (state_path.parent, out_dir))
    bests = _of_run([directory / BEST for directory in directories], saved)
    # A run that was killed may have written a better one after its last save.
    found = next((one for one in bests if one.provenance["epochs"] >= lost), None)
    if found is None:
        others = [
            path
            for directory in directories
            for path in (directory / LAST, *sorted(directory.glob("epoch-*.safetensors")))
        ]
        found = max(_of_run(others, saved), key=lambda one: _rank(one, metric), default=None)
        log.warning("%s of epoch %d is lost: %s", out_dir / BEST, lost, _taken(found, metric))
        progress |= {"best_epoch": progress["epoch"], "best_value": None}
    if found is None:
        return
    if (value := _value(found, metric)) is not None:
        progress |= {"best_epoch": found.provenance["epochs"], "best_value": value}
    if found.path != out_dir.resolve() / BEST:
        write_whole(out_dir / BEST, found.path.read_bytes())
        log.info("%s: copied from %s", out_dir / BEST, found.path)


def _of_run(paths: Iterable[Path], saved: dict[str, Any]) -> list[Checkpoint]:
    """The checkpoints that this run wrote, of the files that exist and are whole."""
    found = []
    for path in filter(Path.exists, paths):
        try:
            checkpoint = load_checkpoint(path)
        except ValueError as error:
            log.warning("%s", error)
            continue
        origin = checkpoint.provenance
        if origin.get("source") == "model.train" and is_same_run(
            run_fingerprint(checkpoint.config, origin["data"]), saved["fingerprint"]
        ):
            found.append(checkpoint)
    return found


def _taken(found: Checkpoint | None, metric: str) -> str:
    if found is None:
        return "the best epoch is chosen from the next ones"
    place = "the last" if _value(found, metric) is None else "the best"
    return f"{found.path}, of epoch {found.provenance['epochs']}, is {place} that is left"


def _value(checkpoint: Checkpoint, metric: str) -> float | None:
    """What `best_metric` names; None if the checkpoint does not say it."""
    if metric == "loss":
        loss: float | None = checkpoint.provenance.get("validation_loss")
        return loss
    return checkpoint.metrics.get(metric)


def _rank(checkpoint: Checkpoint, metric: str) -> tuple[float, int]:
    value = _value(checkpoint, metric)
    rank = -math.inf if value is None else -value if metric == "loss" else value
    return rank, checkpoint.provenance["epochs"]
