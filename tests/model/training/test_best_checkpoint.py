"""A run that goes on names a best checkpoint that exists, and is its own."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoints.checkpoint_file import load_checkpoint, write_checkpoint
from model.data.loading import RunData, open_data
from model.training.best_checkpoint import recover_best
from model.training.fingerprint import run_fingerprint
from model.training.loop import train
from tests.model.runs import digest, epochs_of, run_config


@pytest.fixture
def out_dir(uninterrupted: Path, tmp_path: Path) -> Path:
    """A complete run of four epochs, all with AP 0; the first counts as the best."""
    return shutil.copytree(uninterrupted, tmp_path / "out")


@pytest.fixture
def data(images: Path) -> RunData:
    return open_data(run_config(), images)


def rewrite(path: Path, source: Path, *, ap: float = 0.0, epoch: int = 4, rate: float = 0) -> None:
    """Write a checkpoint of a run as if it had that AP, epoch or learning rate."""
    given = load_checkpoint(source)
    config = replace(given.config, learning_rate=rate or given.config.learning_rate)
    origin = {**given.provenance, "epochs": epoch}
    write_checkpoint(replace(given, config=config, provenance=origin, metrics={"AP": ap}), path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def become_another_runs(path: Path) -> None:
    rewrite(path, path, epoch=1, rate=0.5)


def test_a_run_that_goes_on_elsewhere_takes_its_best_along(
    data: RunData, out_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    other = tmp_path / "other"
    rewrite(other / "best.safetensors", out_dir / "best.safetensors", epoch=1, rate=0.5)

    train(run_config(), data, out_dir=other, resume=str(out_dir / "last.training.pt"))

    assert digest(other / "best.safetensors") == digest(out_dir / "best.safetensors")
    assert f"best AP 0.000 in {other / 'best.safetensors'}" in caplog.text


@pytest.mark.parametrize("lose", [Path.unlink, cut_short, become_another_runs])
def test_the_last_checkpoint_takes_the_place_of_a_lost_best(
    lose: Callable[[Path], None],
    data: RunData,
    out_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lose(out_dir / "best.safetensors")

    train(run_config(), data, out_dir=out_dir)

    assert digest(out_dir / "best.safetensors") == digest(out_dir / "last.safetensors")
    assert "best.safetensors of epoch 1 is lost: " in caplog.text
    assert "last.safetensors, of epoch 4, is the best that is left" in caplog.text


def test_the_best_of_the_kept_epochs_takes_the_place_of_a_lost_best(
    data: RunData, out_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (out_dir / "best.safetensors").unlink()
    for epoch, ap in ((2, 0.1), (3, 0.3)):
        path = out_dir / f"epoch-000{epoch}.safetensors"
        rewrite(path, out_dir / "last.safetensors", ap=ap, epoch=epoch)

    train(run_config(), data, out_dir=out_dir)

    assert digest(out_dir / "best.safetensors") == digest(out_dir / "epoch-0003.safetensors")
    assert "done with epoch 4, best AP 0.300 in" in caplog.text


@pytest.mark.parametrize(
    ("losses", "epoch", "value", "said"),
    [
        ((3.0, 2.0, 2.5), 3, 2.0, "epoch-0003.safetensors, of epoch 3, is the best that is left"),
        ((3.0, None, 3.5), 2, 3.0, "epoch-0002.safetensors, of epoch 2, is the best that is left"),
        ((None, None, None), 4, None, "last.safetensors, of epoch 4, is the last that is left"),
    ],
)
def test_the_lowest_validation_loss_takes_the_place_of_a_lost_best(
    losses: tuple[float | None, ...],
    epoch: int,
    value: float | None,
    said: str,
    out_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = load_checkpoint(out_dir / "last.safetensors")
    config = replace(given.config, best_metric="loss")
    names = ("epoch-0002.safetensors", "epoch-0003.safetensors", "last.safetensors")
    for number, name, loss in zip((2, 3, 4), names, losses, strict=True):
        origin = {**given.provenance, "epochs": number, "validation_loss": loss}
        write_checkpoint(replace(given, config=config, provenance=origin), out_dir / name)
    (out_dir / "best.safetensors").unlink()
    progress = {"best_epoch": 1, "best_value": 1.0, "epoch": 4}
    saved = {
        "progress": progress,
        "fingerprint": run_fingerprint(config, given.provenance["data"]),
    }

    recover_best(saved, out_dir=out_dir, state_path=out_dir / "last.training.pt")

    assert progress == {"best_epoch": epoch, "best_value": value, "epoch": 4}
    assert load_checkpoint(out_dir / "best.safetensors").provenance["epochs"] == epoch
    assert said in caplog.text


def test_a_checkpoint_says_its_validation_loss(out_dir: Path) -> None:
    row = epochs_of(out_dir)[-1]

    loss = load_checkpoint(out_dir / "last.safetensors").provenance["validation_loss"]

    assert loss == pytest.approx(float(row["validation_loss"]), rel=1e-4)


def test_with_all_checkpoints_lost_none_is_named_and_the_next_epoch_is_the_best(
    data: RunData, out_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in ("best.safetensors", "last.safetensors"):
        (out_dir / name).unlink()

    train(run_config(), data, out_dir=out_dir)
    said = caplog.messages[-1]
    train(run_config(epochs=5), data, out_dir=out_dir)

    assert said == (
        f"{out_dir}: done with epoch 4, but its checkpoints are lost: a run of more epochs writes "
        "new ones"
    )
    assert "is lost: the best epoch is chosen from the next ones" in caplog.text
    assert load_checkpoint(out_dir / "best.safetensors").provenance["epochs"] == 5


def test_a_best_that_was_written_after_the_last_save_stays_the_best(
    data: RunData, out_dir: Path
) -> None:
    best = out_dir / "best.safetensors"
    rewrite(best, best, ap=0.5, epoch=5)
    before = digest(best)

    train(run_config(epochs=5), data, out_dir=out_dir)

    assert digest(best) == before
    assert epochs_of(out_dir)[-1]["epoch"] == "5"
