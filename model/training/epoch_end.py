"""What follows the steps of an epoch: evaluation, curves, a log line and checkpoints."""

import logging
import math
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from bundle.terminal import shortened
from model.checkpoints.checkpoint_file import save_checkpoint
from model.config import TrainConfig
from model.data.loading import RunData
from model.distributed import in_main
from model.evaluation.coco_metrics import Metrics
from model.evaluation.evaluation import evaluate
from model.network.inference import DetectionModel
from model.training.best_epoch import count_epoch, drop_old_checkpoints, kept_name, shown_best
from model.training.board import Board
from model.training.epoch_record import EpochRecord, write_record
from model.training.interrupt import StopRequest, unless_stopped
from model.training.run_directory import BEST, LAST
from model.training.run_time import RunTime
from model.training.schedule import learning_rate
from model.training.step_times import shown_shares
from model.training.training_state import TrainingState
from model.training.validation_loss import ValidationLoss

SHOWN_CLASSES = 12  # in the log
log = logging.getLogger(__name__)


def end_epoch(
    state: TrainingState,
    data: RunData,
    *,
    run_time: RunTime,
    stop: StopRequest,
    board: Board | None,
    out_dir: Path,
) -> Metrics:
    """Evaluate the weights to keep, count the epoch, and write the checkpoints.

    Returns:
        The COCO metrics on the validation images.

    Raises:
        Interrupted: a stop was requested; nothing was counted or written.
        PeerFailed: another process of the run has ended.
        OSError: a checkpoint could not be written; its previous version is intact.
    """
    progress, config = state.progress, run_time.config
    model = DetectionModel(state.evaluated_model, config.preprocess)
    loss = ValidationLoss(model, config, ground_truth=data.val.ground_truth(), classes=data.classes)
    metrics = evaluate(
        unless_stopped(loss.predict, stop),
        data.val,
        preprocess=config.preprocess,
        classes=data.classes,
        follow=loss.add,
    )
    run_time.count_evaluation()
    entry = EpochRecord(
        progress.epoch + 1,
        progress.step,
        progress.total_seconds,
        learning_rate=learning_rate(state.optimizer, config),
        training_loss=progress.mean_loss,
        validation_loss=loss.total(),
        metrics=metrics,
        part_seconds=progress.part_seconds,
    )
    is_best = count_epoch(progress, config, entry=entry)
    _log_epoch(entry, run_time)
    write_record(entry, out_dir, board=board)
    _write_checkpoints(state, data, entry=entry, config=config, out_dir=out_dir, is_best=is_best)
    return metrics


def pass_epoch(run_time: RunTime) -> None:
    """Count an epoch that is not evaluated."""
    progress = run_time.progress
    log.info(
        "%s: loss %.3f, %s so far",
        *(run_time.epoch_name(progress.epoch + 1), progress.mean_loss),
        timedelta(seconds=round(progress.total_seconds)),
    )
    progress.end_epoch()


def _log_epoch(entry: EpochRecord, run_time: RunTime) -> None:
    progress, config = run_time.progress, run_time.config
    log.info(
        "%s: %s, %s, loss %.3f, validation loss %.3f, %s so far",
        *(run_time.epoch_name(entry.epoch), _shown(entry.metrics), shown_best(progress, config)),
        *(entry.training_loss, entry.validation_loss, timedelta(seconds=round(entry.seconds))),
    )
    log.info("time of the steps: %s", shown_shares(entry.part_seconds))
    if by_class := _shown_classes(entry.class_ap):
        log.info("AP by class: %s", by_class)
    if run_time.is_out_of_patience:
        log.info(
            "stopping: no better epoch since epoch %d, and patience=%s allows no more",
            *(progress.best_epoch, config.patience),
        )


def _shown(metrics: Metrics) -> str:
    if "AP" not in metrics.defined:
        return "no AP, as the validation images have no boxes"
    return f"AP {metrics.numbers['AP']:.3f}, AP50 {metrics.numbers['AP50']:.3f}"


def _shown_classes(class_ap: dict[str, float]) -> str:
    """AP of every class, or of those with the lowest; nothing for a single one."""
    known = [(name, ap) for name, ap in class_ap.items() if not math.isnan(ap)]
    if len(class_ap) == 1 or not known:
        return ""
    rest = ""
    if len(known) > SHOWN_CLASSES:
        rest = f" are the lowest of {len(known)}"
        known = sorted(known, key=lambda item: item[1])[:SHOWN_CLASSES]
    return ", ".join(f"{shortened(name)} {ap:.3f}" for name, ap in known) + rest


def _write_checkpoints(
    state: TrainingState,
    data: RunData,
    *,
    entry: EpochRecord,
    config: TrainConfig,
    out_dir: Path,
    is_best: bool,
) -> None:
    """Write last.safetensors, best.safetensors if this is the best, and the epoch's own if kept."""
    names = [LAST, BEST] if is_best else [LAST]
    if config.keep_last:
        names.append(kept_name(state.progress.epoch))
    for name in names:
        in_main(save_checkpoint)(
            out_dir / name,
            state.evaluated_model,
            config=config,
            classes=data.classes,
            provenance=_provenance(config, data, state, entry),
            metrics=entry.metrics.defined,
            thresholds=entry.metrics.thresholds,
        )
    in_main(drop_old_checkpoints)(out_dir, state.progress.epoch, keep_last=config.keep_last)


def _provenance(
    config: TrainConfig, data: RunData, state: TrainingState, entry: EpochRecord
) -> dict[str, Any]:
    """The provenance to store in a checkpoint."""
    return {
        "source": "model.train",
        "config": config.name,
        "data": data.summary,
        "epochs": state.progress.epoch,
        "steps": state.progress.step,
        "seconds": round(state.progress.total_seconds, 1),
        "validation_loss": entry.validation_loss if math.isfinite(entry.validation_loss) else None,
        "is_average": state.average is not None,
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of this code, if it is a git checkout and git is installed."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
