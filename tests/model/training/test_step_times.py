"""The time of a step, by part."""

from dataclasses import replace

import torch

from model.configs import tiny
from model.network.deformable_detr import DeformableDetr
from model.training.optimiser_step import take_step
from model.training.step_times import PARTS, StepTimes, shown_shares
from model.training.training_state import TrainingState
from tests.model.training.test_optimiser_step import make_batch


def test_every_part_of_a_step_gets_its_time() -> None:
    config = replace(tiny(), accumulation_steps=2)
    state = TrainingState.start(DeformableDetr(config.model).train(), config)
    ended: list[str] = []

    take_step(
        state, [make_batch(1, 2), make_batch(3, 2)],
        config=config, dtype=torch.float32, lap=ended.append,
    )  # fmt: skip

    assert ended == [*["forward", "loss", "backward"] * 2, "optimiser"]
    assert set(ended) < set(PARTS)


def test_parts_add_up_and_time_between_them_is_left_out() -> None:
    clock = iter([0.0, 1.0, 3.0, 10.0, 14.0]).__next__
    times = StepTimes(torch.device("cpu"), clock)

    times.lap("forward")  # 1
    times.lap("backward")  # 2
    first = times.take()
    times.start()
    times.lap("forward")  # 4
    second = times.take()

    assert first == dict.fromkeys(PARTS, 0.0) | {"forward": 1.0, "backward": 2.0}
    assert second == dict.fromkeys(PARTS, 0.0) | {"forward": 4.0}
    assert shown_shares({"forward": 1.0, "loss": 3.0}) == "forward 25%, loss 75%"
