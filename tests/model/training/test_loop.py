"""One epoch of the training loop."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from model.data.loading import open_data
from model.network.deformable_detr import DeformableDetr
from model.training.interrupt import StopRequest
from model.training.loop import SAVE_INTERVAL_S, train_epoch
from model.training.run_time import RunTime
from model.training.training_state import TrainingState
from tests.model.runs import run_config


def test_an_epoch_trains_and_is_saved_time_and_again(images: Path) -> None:
    config = run_config(ema_decay=None, num_workers=0)
    data = open_data(config, images)
    config = replace(config, model=replace(config.model, num_classes=len(data.classes)))
    evaluated = DeformableDetr(config.model).eval()  # as an evaluation leaves it
    state = TrainingState.start(evaluated, config)
    slow_clock = count(step=SAVE_INTERVAL_S + 1).__next__
    saved: list[tuple[int, bool]] = []

    with StopRequest() as stop:
        train_epoch(
            state,
            data,
            run_time=RunTime(state.progress, config, slow_clock),
            dtype=torch.float32,
            stop=stop,
            board=None,
            save=lambda: saved.append((state.progress.step, state.model.training)),
        )

    assert saved == [(1, True), (2, True), (2, True)]
