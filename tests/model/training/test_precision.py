"""The arithmetic that a run chooses for its process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.data.loading import open_data
from model.training.loop import train
from model.training.precision import set_tf32
from tests.model.runs import run_config


@pytest.fixture(autouse=True)
def _exact_afterwards() -> Iterator[None]:
    yield
    set_tf32(False)


def gpu_arithmetic() -> set[str]:
    return {
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize(("is_allowed", "expected"), [(True, "tf32"), (False, "ieee")])
def test_a_run_decides_whether_float32_is_exact_on_a_gpu(
    images: Path, tmp_path: Path, is_allowed: bool, expected: str
) -> None:
    config = run_config(tf32=is_allowed, epochs=1, num_workers=0)

    train(config, open_data(config, images), out_dir=tmp_path)

    assert gpu_arithmetic() == {expected}
