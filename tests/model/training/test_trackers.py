"""Weights & Biases and MLflow get the values of the curves; neither can end a run."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from model.train import main
from model.training.board import Board, open_board, record
from model.training.trackers import Tracking, open_tracking, require_tracker


class Recorder:
    """A tracker that keeps what it is told, and fails at one step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.fails_at = fails_at

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("no route\nto host")
        self.points.append((step, dict(values)))

    def close(self) -> None:
        self.points.append((-1, {}))


class Writer:
    """TensorBoard's writer, which keeps its points."""

    def __init__(self) -> None:
        self.points: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.points.append((name, value, step))


def test_a_tracker_gets_the_names_values_and_steps_of_tensorboard() -> None:
    tracker, writer = Recorder(), Writer()
    board = Board(writer, Tracking("wandb", lambda: tracker))  # type: ignore[arg-type]

    record(board, "validation", values={"AP": 0.5, "loss": 2.0}, step=40)

    assert writer.points == [("validation/AP", 0.5, 40), ("validation/loss", 2.0, 40)]
    assert tracker.points == [(40, {"validation/AP": 0.5, "validation/loss": 2.0})]


def test_a_tracker_that_fails_is_left_out_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Recorder(fails_at=2)
    tracking = Tracking("mlflow", lambda: tracker)

    for step in (1, 2, 3):
        tracking.log({"loss": 1.0}, step)
    tracking.close()

    assert tracker.points == [(1, {"loss": 1.0})]
    assert caplog.messages == [
        "tracker=mlflow failed, and the run goes on without it; its values are in TensorBoard "
        "(ConnectionError: no route\\nto host)"
    ]


def test_a_tracker_that_cannot_be_opened_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> Recorder:
        raise PermissionError("no API key")

    tracking = Tracking("wandb", refuse)
    tracking.log({"loss": 1.0}, 1)
    tracking.close()

    assert "PermissionError: no API key" in caplog.text
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_package_that_is_missing_is_named_before_anything_is_read(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("model.training.trackers.find_spec", lambda name: None)

    status = main(["--config", "tiny", "--set", f"tracker={name}", "--data", "none"])

    assert status == 1
    assert f"needs the package {package}, which is not installed: .venv/bin/pip" in caplog.text


def test_a_folder_of_earlier_runs_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    with pytest.raises(ValueError, match="needs the package wandb, which is not installed"):
        require_tracker("wandb")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def init(:", "SyntaxError"),
        ("import no_such_part", "ModuleNotFoundError"),
        ("class Broken(Exception): pass\nraise Broken('built for another Python')", "Broken"),
        ("assert False", "AssertionError"),
        ("class Error(Exception): pass\ndef init(**_): raise Error('no key')", "AttributeError"),
        (
            "class Refused(Exception): pass\ndef Settings(**_): pass\n"
            "def init(**_): raise Refused('no key')",
            "Refused: no key",
        ),
    ],
)
def test_a_package_that_is_broken_ends_the_tracking_only(
    code: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "wandb.py").write_text(code)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)

    with open_board(tmp_path, 0, tracker="wandb") as board:
        record(board, "training", values={"loss": 1.0}, step=1)

    sys.modules.pop("wandb", None)
    assert len(caplog.messages) == 1
    assert f"({reason}" in caplog.text


needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="needs the package wandb"
)
needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="needs the package mlflow-skinny"
)


@needs_wandb
@pytest.mark.filterwarnings("default")  # its own
def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")

    tracking = open_tracking("wandb", tmp_path, settings={"config": {"epochs": 3}})
    assert tracking is not None
    tracking.log({"validation/AP": 0.5}, 40)
    tracking.close()

    [file] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"validation/AP" in file.read_bytes()
    assert (tmp_path / "wandb-run").read_text() in file.name


@needs_mlflow
@pytest.mark.filterwarnings("default")  # its own
def test_mlflow_keeps_a_run_in_files_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # it prefers a database

    for step in (20, 40):
        tracking = open_tracking("mlflow", tmp_path, settings={"config": {"epochs": 3}})
        assert tracking is not None
        tracking.log({"validation AP by class/a(b)": step / 100}, step)
        tracking.close()

    run_id = (tmp_path / "mlflow-run").read_text()
    points = mlflow.MlflowClient().get_metric_history(run_id, "validation AP by class/a_b_")
    assert [(point.step, point.value) for point in points] == [(20, 0.2), (40, 0.4)]
