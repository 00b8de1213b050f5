"""Running out of memory is distinguished from other errors."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model.configs import tiny
from model.network.deformable_detr import DeformableDetr
from model.training.memory import MemoryRanOut, is_out_of_memory, saved_if_memory_runs_out
from model.training.training_state import TrainingState

TOO_MUCH = 1 << 60  # bytes; no machine has them


@pytest.mark.parametrize(
    "error", [MemoryError("1 GB"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_the_errors_of_python_and_of_a_gpu_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_torchs_error_on_a_cpu_is_known() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(TOO_MUCH, dtype=torch.uint8)

    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes disagree"), ValueError("memory"), OSError()]
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.fixture
def state() -> TrainingState:
    """After the first step of a run."""
    config = replace(tiny(), ema_decay=None)
    state = TrainingState.start(DeformableDetr(config.model), config)
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    state.progress.step = 1
    return state


def run_out_in(state: TrainingState, work: Callable[[], object], save: Callable[[], None]) -> str:
    """The message when memory runs out after some work of a step."""

    def step() -> None:
        work()
        raise MemoryError("1 GB")

    with pytest.raises(MemoryRanOut) as error:
        saved_if_memory_runs_out(state, save)(step)()
    return str(error.value)


def test_the_steps_before_are_saved(state: TrainingState) -> None:
    saved: list[bool] = []

    said = run_out_in(state, lambda: None, lambda: saved.append(True))

    assert "saved after step 1: the same command continues from there" in said
    assert saved == [True]


def test_nothing_is_saved_once_the_weights_were_being_changed(state: TrainingState) -> None:
    saved: list[bool] = []

    said = run_out_in(state, state.optimizer.step, lambda: saved.append(True))

    assert saved == []
    assert "the last save is intact" in said


def test_memory_too_short_for_saving_is_one_line_too(state: TrainingState) -> None:
    def save() -> None:
        raise MemoryError

    assert "the last save is intact" in run_out_in(state, lambda: None, save)


def test_another_error_of_a_step_goes_on_as_it_is(state: TrainingState) -> None:
    with (
        pytest.raises(RuntimeError, match="shapes disagree"),
        saved_if_memory_runs_out(state, lambda: None),
    ):
        raise RuntimeError("shapes disagree")
