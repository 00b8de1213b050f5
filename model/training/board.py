"""The curves of a run, which only the main process writes: TensorBoard's, and a tracker's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter

from model.distributed import is_main
from model.training.trackers import Tracking, open_tracking

BOARD_FOLDER = "tensorboard"  # in OUT


class Board(NamedTuple):
    """Where the points of curves go."""

    writer: SummaryWriter
    tracking: Tracking | None = None


@contextmanager
def open_board(
    out_dir: Path,
    num_steps: int,
    *,
    tracker: str = "none",
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Board | None]:
    """Open OUT/tensorboard after `num_steps` steps; None in every process but the main one.

    Points of later steps, which an earlier session took and did not save, are dropped.

    Args:
        tracker: see `TrainConfig`; it is told the `settings` of the run.
    """
    if not is_main():
        yield None
        return
    with SummaryWriter(str(out_dir / BOARD_FOLDER), purge_step=num_steps + 1) as writer:
        board = Board(writer, open_tracking(tracker, out_dir, settings=settings or {}))
        try:
            yield board
        finally:
            if board.tracking is not None:
                board.tracking.close()


def record(board: Board | None, kind: str, *, values: Mapping[str, float], step: int) -> None:
    """Add a point at `step` to the curves KIND/NAME of all values."""
    if board is None:
        return
    for name, value in values.items():
        board.writer.add_scalar(f"{kind}/{name}", value, step)
    if board.tracking is not None:
        board.tracking.log({f"{kind}/{name}": value for name, value in values.items()}, step)
