"""A run of several processes ends as one, and goes on exactly wherever it was interrupted."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from model.config import TrainConfig
from model.configs import tiny
from model.data.loading import RunData, open_data
from model.data.workers import LoadingFailed
from model.distributed import PeerFailed, joined, process_index
from model.training.loop import train
from model.training.memory import MemoryRanOut
from model.training.non_finite import NonFiniteLoss
from model.training.run_directory import held
from tests.model.processes import run_together
from tests.model.runs import (
    Watched,
    assert_equal,
    crash_loading,
    interrupted_data,
    kill_worker,
    run_config,
    send,
    state_of,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="forks, and one GPU for many"),
]

# With all that a run has to restore: dropout, moving average, statistics of trained batch norm.
CONFIG = run_config(epochs=2, model=replace(tiny().model, train_batch_norm=True, frozen_stages=-1))


def train_and_tell(config: TrainConfig, data: RunData, out_dir: Path) -> str:
    """Train, and write how that ended into a file of this process."""
    try:
        outcome = str(train(config, data, out_dir=out_dir))
    except (PeerFailed, LoadingFailed, MemoryRanOut, NonFiniteLoss) as error:
        outcome = f"{type(error).__name__}: {error}"
    (out_dir / f"outcome.{process_index()}").write_text(outcome)
    return outcome


def outcomes(out_dir: Path) -> list[str]:
    return [path.read_text() for path in sorted(out_dir.glob("outcome.*"))]


def train_with_fault(
    data: RunData, out_dir: Path, fault: Callable[[RunData], RunData], process: int
) -> str:
    """Train with a fault in one of the processes."""
    return train_and_tell(CONFIG, fault(data) if process_index() == process else data, out_dir)


@pytest.fixture(scope="module")
def data(images: Path) -> RunData:
    return open_data(CONFIG, images)


@pytest.fixture(scope="module")
def undisturbed(data: RunData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes trained two epochs."""
    out_dir = tmp_path_factory.mktemp("undisturbed")
    run_together(2, train_and_tell, CONFIG, data, out_dir)
    assert outcomes(out_dir) == ["0", "0"]
    return out_dir


def at_image(count: int, accident: Callable[[], None]) -> Callable[[RunData], RunData]:
    """Something that happens before a process loads its image with that count."""
    return lambda data: interrupted_data(data, "train", count, accident)


# An epoch is two steps of 4 and 2 images; a process loads 2 and 1 of them.
def test_a_signal_to_any_process_stops_all_after_the_same_step(
    data: RunData, tmp_path: Path
) -> None:
    stop = at_image(5, send(signal.SIGTERM))  # the second of the third step

    run_together(2, train_with_fault, data, tmp_path, stop, 1)

    assert outcomes(tmp_path) == ["143", "143"]
    assert state_of(tmp_path)["progress"]["step"] == 3


def test_a_fault_in_one_process_ends_all_and_loses_no_step(data: RunData, tmp_path: Path) -> None:
    run_together(2, train_with_fault, data, tmp_path, at_image(3, crash_loading), 1)

    main, other = outcomes(tmp_path)
    assert main.startswith("PeerFailed: another process of this run has ended; saved after step 1")
    assert other.startswith("LoadingFailed: KeyError: 'bbox'")
    assert state_of(tmp_path)["progress"]["step"] == 1


class OneBadBox(Watched):
    """A data set whose fifth image has a box that is not a number."""

    def __getitem__(self, index: int) -> Any:
        image, target = self._dataset[index]
        if target["image_id"] == 5:
            target["boxes"] = target["boxes"] * float("nan")
        return image, target


def test_a_loss_that_is_not_finite_is_told_by_the_main_process(
    data: RunData, tmp_path: Path
) -> None:
    bad: Any = OneBadBox(data.train, 0, crash_loading)

    run_together(2, train_and_tell, CONFIG, replace(data, train=bad), tmp_path)

    main, other = outcomes(tmp_path)
    assert main.startswith("NonFiniteLoss: step ")
    assert "loss is not finite; image ids [" in main
    assert "5" in main
    assert other.startswith("PeerFailed: ")


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Restores what torchrun's agent changes in the process that it runs in."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train_and_die_once(data: RunData, out_dir: Path) -> None:
    """The second process is killed in its fifth image, before it was restarted."""
    torch.set_num_threads(1)
    with joined(), held(out_dir):
        is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        outcome = train_with_fault(data, out_dir, at_image(5, kill_worker), 1 if is_first else -1)
    assert outcome == "0"


def test_a_killed_process_is_restarted_and_the_run_goes_on_exactly(
    data: RunData,
    undisturbed: Path,
    tmp_path: Path,
    signal_handlers: None,
) -> None:
    torchrun = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="test", max_restarts=1,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", monitor_interval=0.1,
        start_method="fork",
    )  # fmt: skip

    elastic_launch(torchrun, train_and_die_once)(data, tmp_path)

    assert outcomes(tmp_path) == ["0", "0"]
    assert_equal(state_of(tmp_path), state_of(undisturbed))
