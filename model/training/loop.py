"""The training loop, top to bottom.

Writes to OUT: best.safetensors and last.safetensors (checkpoints, see `model.checkpoint`),
last.training.pt and previous.training.pt (what a resumed run needs) and tensorboard/.
"""

import logging
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from bundle.detect import Predict
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Uint8Array
from model.checkpoints.checkpoint_file import save_checkpoint
from model.config import TrainConfig
from model.data.loading import RunData, epoch_batches, largest_images, steps_per_epoch
from model.data.workers import LoadingFailed
from model.evaluation.coco_metrics import Metrics
from model.evaluation.evaluation import evaluate
from model.evaluation.padding import padding_report
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel, torch_predictor
from model.progress import progress_bar
from model.training.batch_memory import Measure, plan_batch
from model.training.interrupt import Interrupted, StopRequest
from model.training.memory import (
    saved_if_memory_runs_out,
)
from model.training.optimiser_step import forward_dtype, take_step
from model.training.run_time import Clock, RunTime
from model.training.schedule import learning_rate_doubt, schedule_factor, set_learning_rate
from model.training.starting_weights import check_start, load_starting_weights
from model.training.training_state import (
    Progress,
    TrainingState,
    read_last_state,
    read_training_state,
    run_fingerprint,
    with_saved_batch,
)

STATE_FILE = "last.training.pt"
SAVE_INTERVAL_S = 600.0  # a crash loses at most this much work
SCALAR_STEPS = 20  # between two points of a TensorBoard curve
log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    data: RunData,
    *,
    out_dir: Path,
    resume: str = "auto",
    init: Path | None = None,
    clock: Clock = time.monotonic,
    measure: Measure | None = None,
) -> int:
    """Train a detector from the start, or continue a stopped run.

    Args:
        data: its classes decide num_classes, whatever `config` says.
        resume: "auto" continues a run in `out_dir` if there is one; a path continues from that
            training state.
        init: checkpoint to take the weights of a new run from.
        clock: decides when a run with `config.minutes` ends.
        measure: finds the memory of a batch before the first step; needed by batch_size=auto.

    Returns:
        The exit status: 0 for a complete run, 130 or 143 for one stopped by a signal.

    Raises:
        ValueError: configuration, starting weights or the saved run do not fit together, or the
            loss is NaN or infinite (`NonFiniteLoss`).
        LoadingFailed: an image could not be loaded, or a process that loads them was killed.
        MemoryRanOut: no memory was left for a step, or even one image does not fit.
        OSError: a file could not be written; its previous version is intact.
    """
    config = replace(config, model=replace(config.model, num_classes=len(data.classes)))
    fingerprint = run_fingerprint(config, data.summary)
    state_path = out_dir / STATE_FILE if resume == "auto" else Path(resume)
    if resume == "auto":
        saved = read_last_state(state_path, fingerprint)
    else:
        saved = read_training_state(state_path, fingerprint)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if saved is None:
        check_start(config, init)
        size_px = largest_images(data.train, config)
        memory = measure(config, size_px, device=device) if measure else None
        config = plan_batch(config, memory, size_px=size_px)
    else:
        config = with_saved_batch(config, saved)
    fingerprint = run_fingerprint(config, data.summary)
    if saved is not None and init is not None:
        log.warning("ignoring INIT= (--init) %s: the weights come from %s", init, state_path)
    if doubt := learning_rate_doubt(config):
        log.warning(doubt)

    torch.manual_seed(config.seed)
    dtype = forward_dtype(config, device)
    model = DeformableDetr(config.model).to(device)
    log.info(
        "config %s on %s in %s: %.2f M parameters, %d training, %d validation images, %d classes",
        *(config.name, device, str(dtype).removeprefix("torch.")),
        *(sum(p.numel() for p in model.parameters()) / 1e6, len(data.train), len(data.val)),
        len(data.classes),
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    first_step = 0 if saved is None else saved["progress"]["step"]
    with (
        StopRequest() as stop,
        logging_redirect_tqdm(),
        SummaryWriter(str(out_dir / "tensorboard"), purge_step=first_step) as board,
    ):
        try:
            started = clock()
            if saved is None:
                load_starting_weights(model, config, init=init, stop=stop)
            state = TrainingState.start(model, config)
            save_state = partial(state.save, out_dir / STATE_FILE, fingerprint)
            if saved is None:
                state.progress.start_seconds = clock() - started
                save_state()
            else:
                state.restore(saved)
                log.info("continuing from %s after step %d", state_path, state.progress.step)
            progress = state.progress
            run_time = RunTime(progress, config, clock)
            while not run_time.is_over or progress.step_in_epoch:
                train_epoch(
                    state,
                    data,
                    run_time=run_time,
                    dtype=dtype,
                    stop=stop,
                    board=board,
                    save=save_state,
                )
                metrics = _evaluate(state, data, config, stop)
                run_time.count_evaluation()
                ap = metrics.numbers["AP"]
                progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
                # NaN if there is no box to evaluate on; the last epoch then counts as the best.
                is_best = progress.best_ap is None or math.isnan(ap) or ap > progress.best_ap
                if is_best and not math.isnan(ap):
                    progress.best_ap = ap
                for name, value in metrics.defined.items():
                    board.add_scalar(f"validation/{name}", value, progress.step)
                log.info(
                    "%s: %s, %s, %s so far",
                    *(run_time.epoch_name(progress.epoch), _shown(metrics), _shown_best(progress)),
                    timedelta(seconds=round(progress.total_seconds)),
                )
                for name in ("last", "best") if is_best else ("last",):
                    save_checkpoint(
                        out_dir / f"{name}.safetensors",
                        state.evaluated_model,
                        config=config,
                        classes=data.classes,
                        provenance=_provenance(config, data, state),
                        metrics=metrics.defined,
                        thresholds=metrics.thresholds,
                    )
                save_state()
                if run_time.is_over and metrics.thresholds:
                    log.info("best F1 at %s", metrics.thresholds.overall)
                if run_time.is_over and "AP" in metrics.defined:
                    log.info(
                        padding_report(
                            _predictor(state, config, stop),
                            data.val,
                            preprocess=config.preprocess,
                            classes=data.classes,
                            alone=metrics,
                        )
                    )
        except Interrupted:
            log.warning("stopped; the same command with RESUME=auto (--resume) continues from here")
            return stop.exit_status
    if progress.step == 0:
        raise ValueError(
            f"minutes={config.minutes:g} passed before the first step; the weights to start from "
            f"took {timedelta(seconds=round(progress.start_seconds))} and are saved: the same "
            "command continues with more minutes"
        )
    log.info(
        "%s: %d epochs done, %s in %s; another OUT= (--out) starts a new run",
        *(out_dir, progress.epoch, _shown_best(progress), out_dir / "best.safetensors"),
    )
    return 0


def train_epoch(
    state: TrainingState,
    data: RunData,
    *,
    run_time: RunTime,
    dtype: torch.dtype,
    stop: StopRequest,
    board: SummaryWriter,
    save: Callable[[], None],
) -> None:
    """Take the remaining steps of the current epoch that there is time for, then `save`.

    Raises:
        Interrupted: a stop was requested; the step was finished and saved.
        LoadingFailed: an image could not be loaded; the steps before were saved.
        MemoryRanOut: a step ran out of memory; the steps before were saved if possible.
        NonFiniteLoss: the step changed nothing, and nothing was saved.
    """
    progress, config = state.progress, run_time.config
    num_steps = steps_per_epoch(len(data.train), config)
    state.model.train()
    run_time.count()
    saved_at = progress.seconds
    with (
        _saved_if_loading_fails(state, stop, save),
        progress_bar(
            desc=run_time.epoch_name(progress.epoch + 1),
            total=len(data.train),
            initial=progress.step_in_epoch * config.batch_size * config.accumulation_steps,
            unit=" images",
        ) as bar,
    ):
        steps = epoch_batches(
            data.train, config, epoch=progress.epoch, skip_steps=progress.step_in_epoch
        )
        for batches in steps:
            if run_time.is_over:
                break
            factor = schedule_factor(
                progress.step, num_steps, config=config, used_share=run_time.used_share
            )
            set_learning_rate(state.optimizer, factor)
            with saved_if_memory_runs_out(state, save):
                values = take_step(state, batches, config=config, dtype=dtype)

            run_time.count_step()
            values["learning_rate"] = config.learning_rate * factor
            bar.set_postfix(
                loss=f"{values['loss']:.3f}",
                lr=f"{values['learning_rate']:.1e}",
                run_left=run_time.left(num_steps),
                refresh=False,
            )
            bar.update(sum(len(targets) for _, _, targets in batches))
            if progress.step % SCALAR_STEPS == 0:
                for name, value in values.items():
                    board.add_scalar(f"training/{name}", value, progress.step)
            if stop.is_requested:
                save()
                raise Interrupted
            if progress.seconds - saved_at > SAVE_INTERVAL_S:
                save()
                saved_at = progress.seconds
    save()


@contextmanager
def _saved_if_loading_fails(
    state: TrainingState, stop: StopRequest, save: Callable[[], None]
) -> Iterator[None]:
    """Save the steps before the one whose images failed to load."""
    try:
        yield
    except LoadingFailed as error:
        save()
        stop.check()  # a stop may have ended the workers, too
        raise LoadingFailed(
            f"{error}; saved after step {state.progress.step}: the same command continues "
            "from there"
        ) from None


def _shown(metrics: Metrics) -> str:
    if "AP" not in metrics.defined:
        return "no AP, as the validation images have no boxes"
    return f"AP {metrics.numbers['AP']:.3f}, AP50 {metrics.numbers['AP50']:.3f}"


def _shown_best(progress: Progress) -> str:
    return "the last epoch" if progress.best_ap is None else f"best AP {progress.best_ap:.3f}"


def _predictor(state: TrainingState, config: TrainConfig, stop: StopRequest) -> Predict:
    """A predictor with the weights to keep; it raises Interrupted if a stop is requested."""
    predict = torch_predictor(DetectionModel(state.evaluated_model, config.preprocess))

    def predict_or_stop(images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        stop.check()
        return predict(images, padding_mask)

    return predict_or_stop


def _evaluate(
    state: TrainingState, data: RunData, config: TrainConfig, stop: StopRequest
) -> Metrics:
    """COCO metrics of the weights to keep; raises Interrupted if a stop is requested."""
    predict = _predictor(state, config, stop)
    return evaluate(predict, data.val, preprocess=config.preprocess, classes=data.classes)


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
