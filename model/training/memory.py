"""Handles running out of memory in the training process itself."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from model.distributed import alone
from model.training.training_state import TrainingState

SMALLER_IMAGES = (
    "lower augment.short_sides and augment.long_side (preprocess.short_side and long_side, if "
    "augment is none), or choose a smaller model"
)
ADVICE = (
    "no memory left: set batch_size=auto, or lower batch_size and raise accumulation_steps by the "
    "same factor (SET=, --set); or lower augment.short_sides and augment.long_side"
)
_SMALLER = "a run with a smaller batch can start from its last.safetensors with INIT= (--init)"
OUT_OF_MEMORY = f"{ADVICE}; the last save is intact, and {_SMALLER}"


class MemoryRanOut(Exception):
    """No memory was left for a step; one line, which says what was saved."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that Python or torch, on a GPU or a CPU, could not get memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def saved_if_memory_runs_out(state: TrainingState, save: Callable[[], None]) -> Iterator[None]:
    """Wrap a step: if memory runs out, save the steps before it, as if it had not begun.

    Nothing is saved if memory ran out while weights were changing, or if there is too little for
    saving. Raises MemoryRanOut in every case.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # frees what the step had computed
    else:
        return
    if not state.is_between_steps or not _save_where_it_can_be(save):
        raise MemoryRanOut(OUT_OF_MEMORY)
    raise MemoryRanOut(
        f"{ADVICE}; saved after step {state.progress.step}: the same command continues from there "
        f"if more memory is free, and {_SMALLER}"
    )


def _save_where_it_can_be(save: Callable[[], None]) -> bool:
    try:
        with alone():  # the other processes are in the middle of the step
            save()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
