"""Which epoch counts as the best, and when a run has gone on long enough without a better one."""

import math
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.coco_metrics import Metrics
from model.training.best_epoch import count_epoch, drop_old_checkpoints, kept_name, shown_best
from model.training.epoch_record import EpochRecord
from model.training.run_time import RunTime
from model.training.training_state import Progress
from tests.model.runs import run_config


def entry(epoch: int, *, ap: float = 0.0, loss: float = 1.0) -> EpochRecord:
    metrics = Metrics({"AP": ap, "AP50": 1 - ap}, (), [], {}, None, {}, np.empty(0), np.empty(0))
    return EpochRecord(epoch, epoch, 1.0, learning_rate=1e-4, training_loss=1.0,
                       validation_loss=loss, metrics=metrics)  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "best", "words"),
    [("AP", 2, "best AP 0.500"), ("AP50", 1, "best AP50 0.900"),
     ("loss", 3, "best validation loss 0.200")],
)  # fmt: skip
def test_the_configuration_names_what_is_best(metric: str, best: int, words: str) -> None:
    progress, config = Progress(), run_config(best_metric=metric)
    entries = [entry(1, ap=0.1, loss=0.7), entry(2, ap=0.5, loss=0.3), entry(3, ap=0.5, loss=0.2)]

    was_best = [count_epoch(progress, config, entry=one) for one in entries]

    assert progress.best_epoch == best
    assert was_best[best - 1]
    assert not any(was_best[best:])
    assert shown_best(progress, config) == words


def test_an_epoch_without_a_value_is_the_best_and_loses_no_value() -> None:
    progress, config = Progress(), run_config()
    count_epoch(progress, config, entry=entry(1, ap=0.4))

    is_best = count_epoch(progress, config, entry=entry(2, ap=math.nan))

    assert is_best
    assert (progress.best_epoch, progress.best_value) == (2, 0.4)


def test_patience_counts_the_epochs_since_the_best_one() -> None:
    progress, config = Progress(), run_config(epochs=99, patience=2)
    run_time = RunTime(progress, config, count().__next__)
    is_over = []

    for number, ap in enumerate((0.1, 0.3, 0.2, 0.3), start=1):
        count_epoch(progress, config, entry=entry(number, ap=ap))
        is_over.append(run_time.is_over)

    assert is_over == [False, False, False, True]


@pytest.mark.parametrize(
    ("patience", "expected"), [(None, [1, 3, 6, 8]), (4, [1, 3, 5]), (1, [1, 2])]
)
def test_epochs_are_evaluated_in_turn_and_when_the_run_would_end(
    patience: int | None, expected: list[int]
) -> None:
    progress, config = Progress(), run_config(epochs=8, evaluate_every=3, patience=patience)
    run_time = RunTime(progress, config, count().__next__)
    evaluated = []

    while not run_time.is_over:
        number = progress.epoch + 1
        if run_time.is_evaluation_due:
            evaluated.append(number)
            count_epoch(progress, config, entry=entry(number, ap=0.5))
        else:
            progress.end_epoch()

    assert evaluated == expected


def test_the_last_epochs_are_kept_although_an_earlier_run_came_further(tmp_path: Path) -> None:
    for number in (1, 2, 3, 8, 9):
        (tmp_path / kept_name(number)).touch()

    drop_old_checkpoints(tmp_path, 3, keep_last=2)

    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {kept_name(number) for number in (2, 3, 8, 9)}
