"""Memory that runs out is told from other errors."""

import pytest
import torch

from model.training.memory import is_out_of_memory

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
