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


@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_run_decides_whether_float32_is_exact_on_a_gpu(
    images: Path, tmp_path: Path, is_allowed: bool
) -> None:
    config = run_config(tf32=is_allowed, epochs=1, num_workers=0)

    train(config, open_data(config, images), out_dir=tmp_path)

    assert torch.backends.cuda.matmul.allow_tf32 == is_allowed
    assert torch.backends.cudnn.allow_tf32 == is_allowed
    with torch.backends.cudnn.flags():  # as torch.export does
        pass
