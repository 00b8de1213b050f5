"""What follows the last epoch: the results of the best checkpoint, in the log and as a page."""

import logging
from pathlib import Path

import torch

from model.checkpoints.checkpoint_file import Checkpoint, build_model, load_checkpoint
from model.data.loading import RunData
from model.distributed import from_main, in_main, is_main
from model.evaluation.coco_metrics import Metrics
from model.evaluation.epoch_table import CSV_FILE
from model.evaluation.evaluation import evaluate
from model.evaluation.padding import padding_report
from model.evaluation.results_page import REPORT_PAGE, Subject, facts_of, report_after_training
from model.network.inference import DetectionModel, torch_predictor
from model.training.interrupt import StopRequest, unless_stopped
from model.training.run_directory import BEST

NO_AP = "The validation images have no boxes, so there is no AP to compare"
log = logging.getLogger(__name__)


def needs_report(out_dir: Path) -> bool:
    """Whether a complete run has a checkpoint and no page, as it was stopped or the disk full."""
    return from_main((out_dir / BEST).exists() and not (out_dir / REPORT_PAGE).exists())


def report_best(
    data: RunData,
    *,
    last_epoch: int,
    metrics: Metrics | None,
    stop: StopRequest,
    out_dir: Path,
) -> None:
    """Log the thresholds and AP of padded images of OUT/best.safetensors, and write its page.

    Args:
        metrics: of the last epoch, if known. Any other epoch is evaluated again.

    Raises:
        Interrupted: a stop was requested; there is no page.
        PeerFailed: another process of the run has ended.
    """
    checkpoint = from_main(_read_best(out_dir) if is_main() else None)
    if checkpoint is None:
        return
    preprocess = checkpoint.config.preprocess
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = DetectionModel(build_model(checkpoint).to(device), preprocess)
    predict = unless_stopped(torch_predictor(model), stop)
    epoch = checkpoint.provenance["epochs"]
    if metrics is None or epoch != last_epoch:
        metrics = evaluate(predict, data.val, preprocess=preprocess, classes=data.classes)
    if metrics.thresholds:
        log.info("epoch %d, the best: best F1 at %s", epoch, metrics.thresholds.overall)
    padding = NO_AP
    if "AP" in metrics.defined:
        padding = padding_report(
            predict, data.val, preprocess=preprocess, classes=data.classes, alone=metrics
        )
        log.info("epoch %d, the best: %s", epoch, padding)
    subject = Subject(
        f"{checkpoint.path}, after epoch {epoch}",
        {"variant": checkpoint.config.model.variant, **dict(facts_of(checkpoint.provenance))},
        epochs=out_dir / CSV_FILE,
        epoch=epoch,
        padding=f"{padding}.",
    )
    in_main(report_after_training)(metrics, data.val, subject=subject, path=out_dir / REPORT_PAGE)


def _read_best(out_dir: Path) -> Checkpoint | None:
    try:
        return load_checkpoint(out_dir / BEST)
    except (OSError, ValueError) as error:
        log.warning("%s was not written: %s", out_dir / REPORT_PAGE, error)
        return None
