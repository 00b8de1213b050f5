"""The curves of a run that goes on in another OUT: it takes the points so far along."""

from pathlib import Path
from typing import Any

from model.checkpoints.checkpoint_file import write_whole
from model.evaluation.epoch_table import CSV_FILE, read_epochs, write_epochs
from model.training.board import BOARD_FOLDER


def carry_curves(saved: dict[str, Any], *, out_dir: Path, state_path: Path) -> None:
    """Copy metrics.csv and TensorBoard's files from beside a saved state to OUT.

    metrics.csv gets the epochs that the state has completed. It replaces the one in OUT, which is
    of another run. TensorBoard drops the points of later steps when it is opened.

    Args:
        saved: the training state in `state_path`.

    Raises:
        ValueError: beside the state, metrics.csv holds something else.
        OSError: a file cannot be written.
    """
    source = state_path.parent
    if source.resolve() == out_dir.resolve():
        return
    if (source / CSV_FILE).exists():
        rows = read_epochs(source / CSV_FILE)
        done = [row for row in rows if row.get("epoch", 0) <= saved["progress"]["epoch"]]
        write_epochs(out_dir / CSV_FILE, done)
    for file in (source / BOARD_FOLDER).glob("events.*"):
        write_whole(out_dir / BOARD_FOLDER / file.name, file.read_bytes())
