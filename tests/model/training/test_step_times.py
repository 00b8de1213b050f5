"""The time of a step, by part."""

from dataclasses import replace

import pytest
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


class FakeEvent:
    """A moment in the queue of a GPU, which has got as far as `reached_ms`."""

    reached_ms, next_ms = 0.0, 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_ms = FakeEvent.next_ms

    def query(self) -> bool:
        return FakeEvent.reached_ms >= self.at_ms

    def synchronize(self) -> None:
        FakeEvent.reached_ms = max(FakeEvent.reached_ms, self.at_ms)

    def elapsed_time(self, later: "FakeEvent") -> float:
        assert later.query()
        return later.at_ms - self.at_ms


def test_a_part_that_a_gpu_has_not_ended_counts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    times = StepTimes(torch.device("cuda"))
    for part, end_ms in (("forward", 2000.0), ("optimiser", 3000.0)):
        monkeypatch.setattr(FakeEvent, "next_ms", end_ms)
        times.lap(part)
    monkeypatch.setattr(FakeEvent, "reached_ms", 2500.0)

    early, none = times.take(), times.take()
    late = times.take_all()

    assert early == dict.fromkeys(PARTS, 0.0) | {"forward": 2.0}
    assert none == dict.fromkeys(PARTS, 0.0)
    assert late == dict.fromkeys(PARTS, 0.0) | {"optimiser": 1.0}


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
