"""Weights & Biases and MLflow: each gets the values of a run's curves, if it is asked for.

Where the values go is configured by the environment variables of the tracker itself, such as
WANDB_MODE, WANDB_PROJECT and MLFLOW_TRACKING_URI.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from bundle.atomic import write_atomically
from bundle.terminal import one_line

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
log = logging.getLogger(__name__)


class Tracker(Protocol):
    """A run in the service of a tracker. Its methods may raise anything."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point at `step` to every curve."""

    def close(self) -> None:
        """Send what is left, and end the run."""


def require_tracker(name: str) -> None:
    """Raise ValueError if the package of a tracker is not installed."""
    spec = None if name == "none" else find_spec(name)
    # A folder of that name, in which wandb keeps its runs, is a package without an origin.
    if name != "none" and (spec is None or spec.origin is None):
        raise ValueError(
            f"tracker={name} needs the package {PACKAGES[name]}, which is not installed: "
            f".venv/bin/pip install {PACKAGES[name]}"
        )


class Tracking:
    """The curves of a run in a tracker. The first failure is logged, and ends the tracking only."""

    def __init__(self, name: str, open_run: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        with self._failing_quietly():
            self._tracker = open_run()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point at `step` to every curve."""
        if self._tracker is not None:
            with self._failing_quietly():
                self._tracker.log(values, step)

    def close(self) -> None:
        """Send what is left, and end the run."""
        if self._tracker is not None:
            with self._failing_quietly():
                self._tracker.close()

    @contextmanager
    def _failing_quietly(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a package that may be broken, over a network
            self._tracker = None
            log.warning(
                "tracker=%s failed, and the run goes on without it; its values are in TensorBoard "
                "(%s: %s)",
                *(self._name, type(error).__name__, one_line(str(error))),
            )


def open_tracking(name: str, out_dir: Path, *, settings: Mapping[str, Any]) -> Tracking | None:
    """Start the tracking of a run in OUT, or continue it; None if no tracker is asked for."""
    if name == "none":
        return None
    return Tracking(name, lambda: _OPENERS[name](out_dir, settings))


class _Wandb:
    """A run of Weights & Biases."""

    def __init__(self, out_dir: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        id_file = out_dir / "wandb-run"
        self._run = wandb.init(
            name=out_dir.name,
            id=_read_id(id_file),
            resume="allow",
            dir=str(out_dir),
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        _write_id(id_file, self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow."""

    def __init__(self, out_dir: Path, settings: Mapping[str, Any]) -> None:
        import mlflow

        id_file = out_dir / "mlflow-run"
        self._mlflow = mlflow
        found = _read_id(id_file)
        run = mlflow.start_run(run_id=found, run_name=None if found else out_dir.name)
        if found is None:
            mlflow.log_dict(dict(settings), "config.json")
        _write_id(id_file, run.info.run_id)
        self._run_id = run.info.run_id
        self._client = mlflow.MlflowClient()

    def log(self, values: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [
            self._mlflow.entities.Metric(_mlflow_name(name), value, now_ms, step)
            for name, value in values.items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._mlflow.end_run()


def _mlflow_name(name: str) -> str:
    """The name of a curve with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _read_id(file: Path) -> str | None:
    """The id of the run that an earlier session began."""
    return file.read_text().strip() if file.exists() else None


def _write_id(file: Path, run_id: str) -> None:
    write_atomically(file, run_id.encode())


_OPENERS: Mapping[str, type[_Wandb] | type[_MLflow]] = {"wandb": _Wandb, "mlflow": _MLflow}
