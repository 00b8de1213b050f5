"""What follows the steps of an epoch: evaluation, curves, a log line and checkpoints."""

import logging
import math
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from bundle.detect import Predict
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Uint8Array
from model.checkpoints.checkpoint_file import save_checkpoint
from model.config import TrainConfig
from model.data.loading import RunData
from model.distributed import in_main
from model.evaluation.coco_metrics import Metrics
from model.evaluation.evaluation import evaluate
from model.evaluation.padding import padding_report
from model.network.inference import DetectionModel, torch_predictor
from model.training.board import record
from model.training.interrupt import StopRequest
from model.training.run_time import RunTime
from model.training.training_state import Progress, TrainingState

BEST, LAST = "best.safetensors", "last.safetensors"
log = logging.getLogger(__name__)


def end_epoch(
    state: TrainingState,
    data: RunData,
    *,
    run_time: RunTime,
    stop: StopRequest,
    board: SummaryWriter | None,
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
    predict = _predictor(state, config, stop)
    metrics = evaluate(predict, data.val, preprocess=config.preprocess, classes=data.classes)
    run_time.count_evaluation()
    progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
    is_best = _count_best(progress, metrics.numbers["AP"])
    record(board, "validation", values=metrics.defined, step=progress.step)
    log.info(
        "%s: %s, %s, %s so far",
        *(run_time.epoch_name(progress.epoch), _shown(metrics), shown_best(progress)),
        timedelta(seconds=round(progress.total_seconds)),
    )
    for name in (LAST, BEST) if is_best else (LAST,):
        in_main(save_checkpoint)(
            out_dir / name,
            state.evaluated_model,
            config=config,
            classes=data.classes,
            provenance=_provenance(config, data, state),
            metrics=metrics.defined,
            thresholds=metrics.thresholds,
        )
    return metrics


def report_last_epoch(
    state: TrainingState, data: RunData, *, config: TrainConfig, metrics: Metrics, stop: StopRequest
) -> None:
    """Log the thresholds with the best F1, and AP of padded images beside `metrics`."""
    if metrics.thresholds:
        log.info("best F1 at %s", metrics.thresholds.overall)
    if "AP" in metrics.defined:
        log.info(
            padding_report(
                _predictor(state, config, stop),
                data.val,
                preprocess=config.preprocess,
                classes=data.classes,
                alone=metrics,
            )
        )


def shown_best(progress: Progress) -> str:
    """The best AP so far, in words."""
    return "the last epoch" if progress.best_ap is None else f"best AP {progress.best_ap:.3f}"


def _count_best(progress: Progress, ap: float) -> bool:
    """Whether this epoch is the best so far. Without boxes AP is NaN, and the last one counts."""
    if math.isnan(ap):
        return True
    is_best = progress.best_ap is None or ap > progress.best_ap
    if is_best:
        progress.best_ap = ap
    return is_best


def _shown(metrics: Metrics) -> str:
    if "AP" not in metrics.defined:
        return "no AP, as the validation images have no boxes"
    return f"AP {metrics.numbers['AP']:.3f}, AP50 {metrics.numbers['AP50']:.3f}"


def _predictor(state: TrainingState, config: TrainConfig, stop: StopRequest) -> Predict:
    """A predictor with the weights to keep; it raises Interrupted if a stop is requested."""
    predict = torch_predictor(DetectionModel(state.evaluated_model, config.preprocess))

    def predict_or_stop(images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        stop.check()
        return predict(images, padding_mask)

    return predict_or_stop


def _provenance(config: TrainConfig, data: RunData, state: TrainingState) -> dict[str, Any]:
    """The provenance to store in a checkpoint."""
    return {
        "source": "model.train",
        "config": config.name,
        "data": data.summary,
        "epochs": state.progress.epoch,
        "steps": state.progress.step,
        "seconds": round(state.progress.total_seconds, 1),
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
