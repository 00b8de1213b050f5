"""Runs with a time limit, on a clock by which everything takes a second."""

import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints.checkpoint_file import load_checkpoint
from model.config import TrainConfig
from model.data.loading import open_data
from model.training.loop import train
from tests.model.runs import epochs_of, interrupted_data, run_config, send


def seconds() -> Callable[[], float]:
    """A clock that advances by a second whenever it is read."""
    ticks = count()
    return lambda: float(next(ticks))


def timed_config(budget_s: float) -> TrainConfig:
    """A run with this time limit; every epoch has six steps, then an evaluation."""
    steps = {"batch_size": 1, "accumulation_steps": 1, "epochs": 50}
    return run_config(minutes=budget_s / 60, schedule="cosine", warmup_steps=0, **steps)


def saved(out_dir: Path) -> tuple[dict[str, Any], float]:
    """Progress of a run, and the learning rate of its last step."""
    state = torch.load(out_dir / "last.training.pt", weights_only=True)
    return state["progress"], state["optimizer"]["param_groups"][0]["lr"]


@pytest.mark.parametrize("budget_s", [18, 23])
def test_a_run_ends_with_its_schedule_in_the_time_it_is_given(
    budget_s: int, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = timed_config(budget_s)
    caplog.set_level("INFO")

    status = train(config, open_data(config, images), out_dir=tmp_path, clock=seconds())

    progress, last_rate = saved(tmp_path)
    assert status == 0
    # Three seconds are kept for the last evaluations, one of which is counted.
    assert budget_s - 4 <= progress["start_seconds"] + progress["seconds"] <= budget_s - 2
    assert last_rate < 0.02 * config.learning_rate
    assert progress["step_in_epoch"] == 0
    assert load_checkpoint(tmp_path / "last.safetensors").provenance["epochs"] == progress["epoch"]
    assert "padding" in caplog.text


@pytest.mark.parametrize(("budget_s", "steps"), [(12, ["6"]), (13, ["6", "7"])])
def test_no_epoch_begins_without_the_time_for_a_step(
    budget_s: int, steps: list[str], images: Path, tmp_path: Path
) -> None:
    config = timed_config(budget_s)

    train(config, open_data(config, images), out_dir=tmp_path, clock=seconds())

    assert [row["step"] for row in epochs_of(tmp_path)] == steps


def test_a_run_that_was_stopped_does_not_get_its_time_again(images: Path, tmp_path: Path) -> None:
    config = timed_config(25)
    data = open_data(config, images)
    stopping = interrupted_data(data, "train", 9, send(signal.SIGTERM))

    stopped = train(config, stopping, out_dir=tmp_path, clock=seconds())
    half, _ = saved(tmp_path)
    resumed = train(config, data, out_dir=tmp_path, clock=seconds())

    progress, last_rate = saved(tmp_path)
    assert (stopped, resumed) == (143, 0)
    assert 8 < half["seconds"] < 15
    assert 21 <= progress["start_seconds"] + progress["seconds"] <= 25
    assert last_rate < 0.02 * config.learning_rate


def test_a_run_stopped_in_its_last_evaluation_is_evaluated(images: Path, tmp_path: Path) -> None:
    config = timed_config(6)
    data = open_data(config, images)
    stopping = interrupted_data(data, "val", 3, send(signal.SIGTERM))

    stopped = train(config, stopping, out_dir=tmp_path, clock=seconds())
    resumed = train(config, data, out_dir=tmp_path, clock=seconds())

    assert (stopped, resumed) == (143, 0)
    progress, _ = saved(tmp_path)
    assert progress["step_in_epoch"] == 0
    assert load_checkpoint(tmp_path / "last.safetensors").provenance["steps"] == progress["step"]


def test_the_time_of_a_run_may_be_made_longer_and_not_shorter(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for budget_s in (6, 12):
        config = timed_config(budget_s)
        assert train(config, open_data(config, images), out_dir=tmp_path, clock=seconds()) == 0

    progress, _ = saved(tmp_path)
    assert progress["seconds"] > 8
    assert "0.2 minutes instead of 0.1" in caplog.text
    with pytest.raises(ValueError, match=r"config\.minutes: 0\.2 saved, 0\.1 now"):
        train(timed_config(6), open_data(config, images), out_dir=tmp_path, clock=seconds())


def test_a_run_without_a_limit_of_time_may_get_one(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    limited = timed_config(24)
    unlimited = replace(limited, minutes=None, epochs=1)

    for config in (unlimited, limited):
        assert train(config, open_data(config, images), out_dir=tmp_path, clock=seconds()) == 0

    progress, last_rate = saved(tmp_path)
    assert "0.4 minutes instead of no limit" in caplog.text
    assert progress["epoch"] > 1
    assert 20 <= progress["start_seconds"] + progress["seconds"] <= 24
    assert last_rate < 0.02 * config.learning_rate


def test_time_that_is_over_before_the_first_step_is_reported(images: Path, tmp_path: Path) -> None:
    config = timed_config(0.5)

    with pytest.raises(ValueError, match=r"minutes=.* passed before the first step"):
        train(config, open_data(config, images), out_dir=tmp_path, clock=seconds())
