"""The training loop, top to bottom.

Writes to OUT: best.safetensors and last.safetensors (checkpoints, see `model.checkpoint`),
last.training.pt and previous.training.pt (what a resumed run needs), metrics.csv, tensorboard/,
data.html and, at its end, report.html.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from model.config import TrainConfig
from model.data.data_report import DATA_PAGE, report_before_training
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
from model.network.deformable_detr import DeformableDetr
from model.progress import progress_bar
from model.training.batch_memory import Measure
from model.training.best_epoch import shown_end
from model.training.board import Board, open_board, record
from model.training.epoch_end import end_epoch, pass_epoch
from model.training.fingerprint import run_fingerprint
from model.training.freed_memory import keep_freed_memory
from model.training.frozen import freeze_parts
from model.training.interrupt import Interrupted, StopRequest
from model.training.memory import saved_if_memory_runs_out
from model.training.optimiser_step import finish_step, take_step
from model.training.precision import compile_backbone, forward_dtype, set_tf32
from model.training.run_directory import STATE_FILE
from model.training.run_report import needs_report, report_best
from model.training.run_start import RunStart, find_start
from model.training.run_time import Clock, RunTime
from model.training.schedule import learning_rate_doubts, schedule_factor, set_learning_rate
from model.training.starting_weights import Fetch, load_starting_weights
from model.training.state_file import StateFile
from model.training.step_times import StepTimes
from model.training.training_state import Progress, TrainingState
from model.training.unread_step import StepFigures

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
        measure: measures a batch's memory before the first step; needed by batch_size=auto.
        fetch: downloads the published weights that the run starts from, if they are missing.

    Returns:
        The exit status: 0 for a complete run, 130, 143 or 129 for one stopped by a signal.

    Raises:
        ValueError: configuration, starting weights or the saved run do not fit together, or the
            loss is NaN or infinite (`NonFiniteLoss`).
        LoadingFailed: an image could not be loaded, or a process that loads them was killed.
        MemoryRanOut: no memory was left for a step, or even one image does not fit.
        PeerFailed: another process of the run has ended, or the main one reports the error.
        OSError: a file could not be written; its previous version is intact.
    """
    config = replace(config, model=replace(config.model, num_classes=len(data.classes)))
    clock = partial(_main_time, clock)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    find = partial(
        find_start, config, data,
        out_dir=out_dir, resume=resume, init=init, device=device, measure=measure, fetch=fetch,
    )  # fmt: skip
    start = from_main(together(find))
    model, dtype = _new_model(start.config, data, device)
    if start.saved is None and data.report is not None:
        in_main(report_before_training)(data.report, out_dir / DATA_PAGE, augmented=data.train)
    opened = open_board(
        out_dir, start.step, tracker=config.tracker,
        settings=run_fingerprint(start.config, data.summary),
    )  # fmt: skip
    with StopRequest() as stop, logging_redirect_tqdm(), opened as board:
        try:
            progress = _run(
                model, data, start=start, init=init, dtype=dtype, clock=clock, stop=stop,
                board=board, out_dir=out_dir,
            )  # fmt: skip
        except Interrupted:
            log.warning("stopped; the same command with RESUME=auto (--resume) continues from here")
            return stop.exit_status
        except PeerFailed:
            if stop.is_requested:  # of all processes, and another has already followed it
                return stop.exit_status
            raise
    _report_end(progress, start.config, out_dir)
    return 0


def _new_model(
    config: TrainConfig, data: RunData, device: torch.device
) -> tuple[DeformableDetr, torch.dtype]:
    """The model of a run with random weights, and the type that its layers compute in."""
    for doubt in learning_rate_doubts(config, steps_per_epoch(len(data.train), config)):
        log.warning(doubt)
    torch.manual_seed(config.seed)
    dtype = forward_dtype(config, device)
    set_tf32(config.tf32)
    model = DeformableDetr(config.model).to(device)
    log.info(
        "config %s on %s in %s: %.2f M parameters; training images: %d, validation images: %d, "
        "classes: %d",
        *(config.name, device.type, str(dtype).removeprefix("torch.")),
        *(sum(p.numel() for p in model.parameters()) / 1e6, len(data.train), len(data.val)),
        len(data.classes),
    )
    return model, dtype


def _run(
    model: DeformableDetr,
    data: RunData,
    *,
    start: RunStart,
    init: Path | None,
    dtype: torch.dtype,
    clock: Clock,
    stop: StopRequest,
    board: Board | None,
    out_dir: Path,
) -> Progress:
    """Train and evaluate epoch after epoch, saving after both; at the end, report the best one.

    What is not evaluated gets no checkpoint, but the run can continue from there.
    """
    state = _first_state(model, start, init=init, clock=clock, stop=stop)
    state_path = out_dir / STATE_FILE
    state_file = StateFile(state_path, is_whole=start.is_from(state_path))
    fingerprint = run_fingerprint(start.config, data.summary)
    write = in_main(partial(state_file.write, state, fingerprint))

    def save() -> None:
        finish_step(state)
        write()

    if start.saved is None:
        save()
    else:
        log.info("continuing from %s after step %d", start.path, state.progress.step)
    run_time = RunTime(state.progress, start.config, clock)
    metrics: Metrics | None = None
    while not run_time.is_over or state.progress.step_in_epoch:
        train_epoch(state, data, run_time=run_time, dtype=dtype, stop=stop, board=board, save=save)
        if not run_time.is_evaluation_due:
            pass_epoch(run_time)
            save()
            continue
        metrics = end_epoch(state, data, run_time=run_time, stop=stop, board=board, out_dir=out_dir)
        save()
        run_time.count()  # before the next epoch begins, if there is the time for one
    if metrics is not None or needs_report(out_dir):
        report_best(
            data, last_epoch=state.progress.epoch, metrics=metrics, stop=stop, out_dir=out_dir
        )
    return state.progress


def train_epoch(
    state: TrainingState,
    data: RunData,
    *,
    run_time: RunTime,
    dtype: torch.dtype,
    stop: StopRequest,
    board: Board | None,
    save: Callable[[], None],
) -> None:
    """Take those of the current epoch's remaining steps that there is time for, then `save`.

    Raises:
        Interrupted: a stop was requested; the step was finished and saved.
        LoadingFailed: an image could not be loaded; the steps before were saved.
        MemoryRanOut: a step ran out of memory; the steps before were saved if possible.
        PeerFailed: another process ended; the steps before were saved.
        NonFiniteLoss: the step changed nothing, and nothing was saved.
    """
    progress, config = state.progress, run_time.config
    num_steps = steps_per_epoch(len(data.train), config)
    state.model.train()
    times = StepTimes(next(state.model.parameters()).device)
    saved_at = progress.seconds
    with (
        _saved_if_others_fail(state, stop, save),
        _epoch_bar(run_time, num_images=len(data.train)) as bar,
    ):
        show = partial(_show_step, board, bar=bar, run_time=run_time, num_steps=num_steps)
        steps = epoch_batches(
            data.train, config, epoch=progress.epoch, skip_steps=progress.step_in_epoch
        )
        for batches in steps:
            if run_time.is_over:
                break
            times.lap("loading")
            factor = schedule_factor(
                progress.step, num_steps, config=config, used_share=run_time.used_share
            )
            set_learning_rate(state.optimizer, factor)
            with saved_if_memory_runs_out(state, save):
                take_step(
                    state, batches, config=config, dtype=dtype, lap=times.lap,
                    report=partial(show, learning_rate=config.learning_rate * factor),
                )  # fmt: skip
            run_time.count_step(times.take())
            bar.update(min(_images_done(run_time), bar.total) - bar.n)
            stop.share()
            if stop.is_requested:
                save()
                raise Interrupted
            if progress.seconds - saved_at > SAVE_INTERVAL_S:
                save()
                saved_at = progress.seconds
            times.start()
    run_time.count_parts(times.take_all())
    save()


def _epoch_bar(run_time: RunTime, *, num_images: int) -> tqdm:
    """A bar of the current epoch's images, with those of the steps that have been taken."""
    progress = run_time.progress
    return progress_bar(
        desc=run_time.epoch_name(progress.epoch + 1),
        total=num_images,
        initial=_images_done(run_time),
        unit=" images",
        disable=not is_main(),
    )


def _show_step(
    board: Board | None,
    figures: StepFigures,
    *,
    bar: tqdm,
    run_time: RunTime,
    num_steps: int,
    learning_rate: float,
) -> None:
    """Show the figures of a step, which are known once the next one is under way."""
    step, values = figures.step, {**figures.values, "learning_rate": learning_rate}
    bar.set_postfix(
        loss=f"{values['loss']:.3f}",
        lr=f"{learning_rate:.1e}",
        run_left=run_time.left(num_steps),
        refresh=False,
    )
    if step % SCALAR_STEPS == 0:
        record(board, "training", values=values, step=step)


def _images_done(run_time: RunTime) -> int:
    """Images of the epoch's steps so far; the last step of an epoch may have fewer."""
    config = run_time.config
    return run_time.progress.step_in_epoch * config.batch_size * config.accumulation_steps


def _main_time(clock: Clock) -> float:
    """The main process's time, so that all agree on when to end."""
    return from_main(clock())


def _first_state(
    model: DeformableDetr,
    start: RunStart,
    *,
    init: Path | None,
    clock: Clock,
    stop: StopRequest,
) -> TrainingState:
    """The saved state, or one before step 1 whose weights took the `start_seconds` it counts."""
    config, saved, started = start.config, start.saved, clock()
    if saved is None and is_main():
        with alone():
            load_starting_weights(model, config, init=init, stop=stop)
    copy_from_main(model)
    freeze_parts(model, config.freeze)
    state = TrainingState.start(model, config)
    if saved is None:
        state.progress.start_seconds = clock() - started
    else:
        state.restore(saved)
    if config.compile_backbone:
        compile_backbone(model)
    return state


@contextmanager
def _saved_if_others_fail(
    state: TrainingState, stop: StopRequest, save: Callable[[], None]
) -> Iterator[None]:
    """Save the steps before the one whose images failed to load or that lost a process."""
    try:
        yield
    except (LoadingFailed, PeerFailed) as error:
        with alone():
            save()
        stop.check()  # a stop may have ended the workers, too
        raise type(error)(
            f"{error}; saved after step {state.progress.step}: the same command continues "
            "from there"
        ) from None


def _report_end(progress: Progress, config: TrainConfig, out_dir: Path) -> None:
    """Log what a complete run has made.

    Raises:
        ValueError: the time of the run passed before its first step.
    """
    if progress.step == 0:
        message = (
            f"minutes={config.minutes:g} passed before the first step; the weights to start from "
            f"took {timedelta(seconds=round(progress.start_seconds))} and are saved: the same "
            "command continues with more minutes"
        )
        raise agreed(ValueError(message))
    log.info(shown_end(progress, config, out_dir=out_dir))
