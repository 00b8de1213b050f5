"""metrics.csv: what is written comes back, and a resumed run goes on with it."""

import math
from pathlib import Path

import pytest

from model.evaluation.epoch_table import append_epoch, read_epochs


def test_rows_come_back_with_gaps_where_there_was_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"

    append_epoch(path, {"epoch": 1, "loss": 0.1234567, "AP, of cats": math.nan})
    append_epoch(path, {"epoch": 2, "loss": 2e-7, "AP, of cats": 0.5})

    first, second = read_epochs(path)
    assert path.read_text().splitlines()[:2] == ['epoch,loss,"AP, of cats"', "1,0.123457,"]
    assert math.isnan(first["AP, of cats"])
    assert second == {"epoch": 2, "loss": 2e-7, "AP, of cats": 0.5}


def test_no_step_is_rounded(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"

    append_epoch(path, {"epoch": 1, "step": 2_957_183, "loss": math.inf})

    assert path.read_text() == "epoch,step,loss\n1,2957183,inf\n"


def test_a_run_that_went_back_replaces_its_later_epochs(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for epoch in (1, 2, 3):
        append_epoch(path, {"epoch": epoch, "loss": 1})

    append_epoch(path, {"epoch": 2, "loss": 7, "AP": 0})

    assert path.read_text() == "epoch,loss,AP\n1,1,\n2,7,0\n"


@pytest.mark.parametrize("text", ["epoch,loss\n1,much\n", "epoch\n1,2\n"])
def test_another_table_is_refused_and_kept(text: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)

    with pytest.raises(ValueError, match="is not the table of epochs that a run writes"):
        append_epoch(path, {"epoch": 2, "loss": 1})

    assert path.read_text() == text
