"""TensorBoard's curves of a run, which only the main process writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from model.distributed import is_main


@contextmanager
def open_board(out_dir: Path, num_steps: int) -> Iterator[SummaryWriter | None]:
    """Open OUT/tensorboard after `num_steps` steps; None in every process but the main one.

    Points of later steps, which an earlier session took and did not save, are dropped.
    """
    if not is_main():
        yield None
        return
    with SummaryWriter(str(out_dir / "tensorboard"), purge_step=num_steps + 1) as board:
        yield board


def record(board: SummaryWriter | None, kind: str, *, values: dict[str, float], step: int) -> None:
    """Add a point at `step` to the curves KIND/NAME of all values."""
    if board is not None:
        for name, value in values.items():
            board.add_scalar(f"{kind}/{name}", value, step)
