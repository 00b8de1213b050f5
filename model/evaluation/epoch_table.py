"""metrics.csv: a row for each epoch of a run, with its losses and COCO's numbers."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.atomic import write_atomically

CSV_FILE = "metrics.csv"


def read_epochs(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv by column; NaN where a cell is empty.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{name: float(cell or "nan") for name, cell in row.items()} for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the table of epochs that a run writes ({error}): move it away"
        ) from error


def append_epoch(path: Path, row: Mapping[str, float]) -> None:
    """Write the row of an epoch; rows of the same or later epochs, of an earlier run, are dropped.

    Args:
        row: numbers by column, "epoch" among them; NaN becomes an empty cell.
    """
    rows = read_epochs(path) if path.exists() else []
    kept = [one for one in rows if one.get("epoch", math.inf) < row["epoch"]]
    write_epochs(path, [*kept, row])


def write_epochs(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write a table with the columns of its last row; without rows, nothing."""
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    write_atomically(path, text.getvalue().encode())


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"
