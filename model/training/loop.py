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
from model.data.loading import RunData, epoch_batches, steps_per_epoch
from model.data.workers import LoadingFailed
from model.distributed import (
    PeerFailed,
    agreed,
    alone,
    copy_from_main,
    from_main,
    in_main,
    is_main,
    together,
)
from model.evaluation.coco_metrics import Metrics
from model.evaluation.evaluation import evaluate
from model.evaluation.padding import padding_report
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel, torch_predictor
from model.progress import progress_bar
from model.training.batch_memory import Measure
from model.training.interrupt import Interrupted, StopRequest
from model.training.memory import saved_if_memory_runs_out
from model.training.optimiser_step import forward_dtype, take_step
from model.training.run_start import STATE_FILE, find_start
from model.training.run_time import Clock, RunTime
from model.training.schedule import learning_rate_doubt, schedule_factor, set_learning_rate
from model.training.starting_weights import Fetch, load_starting_weights
from model.training.training_state import (
    Progress,
    TrainingState,
    run_fingerprint,
)

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
    fetch: Fetch | None = None,
) -> int:
    """Train a detector from the start, or continue a stopped run.

    Args:
        data: its classes decide num_classes, whatever `config` says.
        resume: "auto" continues a run in `out_dir` if there is one; a path continues from that
            training state.
        init: checkpoint to take the weights of a new run from.
        clock: decides when a run with `config.minutes` ends.
        measure: finds the memory of a batch before the first step; needed by batch_size=auto.
        fetch: downloads the published weights that the run starts from, if they are missing.

    Returns:
        The exit status: 0 for a complete run, 130 or 143 for one stopped by a signal.

    Raises:
        ValueError: configuration, starting weights or the saved run do not fit together, or the
            loss is NaN or infinite (`NonFiniteLoss`).
        LoadingFailed: an image could not be loaded, or a process that loads them was killed.
        MemoryRanOut: no memory was left for a step, or even one image does not fit.
        PeerFailed: another process of the run has ended, or the main one reports the error.
        OSError: a file could not be written; its previous version is intact.
    """
    config = replace(config, model=replace(config.model, num_classes=len(data.classes)))
    state_path = out_dir / STATE_FILE if resume == "auto" else Path(resume)
    clock = partial(_main_time, clock)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    find = partial(
        find_start, config, data,
        state_path=state_path, is_required=resume != "auto", init=init,
        device=device, measure=measure, fetch=fetch,
    )  # fmt: skip
    start = from_main(together(find))
    config, saved = start.config, start.saved
    fingerprint = run_fingerprint(config, data.summary)
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
    in_main(out_dir.mkdir)(parents=True, exist_ok=True)
    with (
        StopRequest() as stop,
        logging_redirect_tqdm(),
        _open_board(out_dir, start.step) as board,
    ):
        try:
            started = clock()
            if saved is None and is_main():
                with alone():
                    load_starting_weights(model, config, init=init, stop=stop)
            copy_from_main(model)
            state = TrainingState.start(model, config)
            save_state = in_main(partial(state.save, out_dir / STATE_FILE, fingerprint))
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
                _record(board, "validation", metrics.defined, progress.step)
                log.info(
                    "%s: %s, %s, %s so far",
                    *(run_time.epoch_name(progress.epoch), _shown(metrics), _shown_best(progress)),
                    timedelta(seconds=round(progress.total_seconds)),
                )
                for name in ("last", "best") if is_best else ("last",):
                    in_main(save_checkpoint)(
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
        except PeerFailed:
            if stop.is_requested:  # of all processes, and another has already followed it
                return stop.exit_status
            raise
    if progress.step == 0:
        message = (
            f"minutes={config.minutes:g} passed before the first step; the weights to start from "
            f"took {timedelta(seconds=round(progress.start_seconds))} and are saved: the same "
            "command continues with more minutes"
        )
        raise agreed(ValueError(message))
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
    board: SummaryWriter | None,
    save: Callable[[], None],
) -> None:
    """Take the remaining steps of the current epoch that there is time for, then `save`.

    Raises:
        Interrupted: a stop was requested; the step was finished and saved.
        LoadingFailed: an image could not be loaded; the steps before were saved.
        MemoryRanOut: a step ran out of memory; the steps before were saved if possible.
        PeerFailed: another process ended; the steps before were saved.
        NonFiniteLoss: the step changed nothing, and nothing was saved.
    """
    progress, config = state.progress, run_time.config
    num_steps = steps_per_epoch(len(data.train), config)
    num_step_images = config.batch_size * config.accumulation_steps
    state.model.train()
    run_time.count()
    saved_at = progress.seconds
    with (
        _saved_if_others_fail(state, stop, save),
        progress_bar(
            desc=run_time.epoch_name(progress.epoch + 1),
            total=len(data.train),
            initial=progress.step_in_epoch * num_step_images,
            unit=" images",
            disable=not is_main(),
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
            bar.update(min(progress.step_in_epoch * num_step_images, len(data.train)) - bar.n)
            if progress.step % SCALAR_STEPS == 0:
                _record(board, "training", values, progress.step)
            stop.share()
            if stop.is_requested:
                save()
                raise Interrupted
            if progress.seconds - saved_at > SAVE_INTERVAL_S:
                save()
                saved_at = progress.seconds
    save()


def _main_time(clock: Clock) -> float:
    """The main process's time, so that all agree on when to end."""
    return from_main(clock())


@contextmanager
def _open_board(out_dir: Path, first_step: int) -> Iterator[SummaryWriter | None]:
    """TensorBoard's files, which only the main process writes."""
    if not is_main():
        yield None
        return
    with SummaryWriter(str(out_dir / "tensorboard"), purge_step=first_step) as board:
        yield board


def _record(board: SummaryWriter | None, kind: str, values: dict[str, float], step: int) -> None:
    if board is not None:
        for name, value in values.items():
            board.add_scalar(f"{kind}/{name}", value, step)


@contextmanager
def _saved_if_others_fail(
    state: TrainingState, stop: StopRequest, save: Callable[[], None]
) -> Iterator[None]:
    """Save the steps before the one whose images failed to load, or that lost a process."""
    try:
        yield
    except (LoadingFailed, PeerFailed) as error:
        save()
        stop.check()  # a stop may have ended the workers, too
        raise type(error)(
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
