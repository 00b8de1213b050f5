"""The curves of a run that continues."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.training.board import open_board, record


def test_a_curve_continues_after_the_steps_that_were_saved(tmp_path: Path) -> None:
    with open_board(tmp_path, num_steps=0) as board:
        for step in (20, 40, 60):
            record(board, "training", values={"loss": 1.0}, step=step)

    with open_board(tmp_path, num_steps=40) as board:
        record(board, "training", values={"loss": 2.0}, step=60)

    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in curves.Scalars("training/loss")]
    assert points == [(20, 1.0), (40, 1.0), (60, 2.0)]
