"""The memory of a batch, found before the first step, and the size that fits."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import TrainConfig
from model.data.loading import open_data
from model.training import batch_memory
from model.training.batch_memory import BatchMemory, plan_batch
from model.training.loop import train
from model.training.memory import MemoryRanOut
from tests.model.runs import ROOT, run_config, state_of

CPU = torch.device("cpu")
GB = 10**9
SIZE_PX = (160, 160)


def auto(**changes: int) -> TrainConfig:
    return run_config(fit_batch=True, **changes)


@pytest.mark.parametrize(
    ("available", "batch_size", "accumulation_steps"),
    [(100 * GB, 12, 1), (12 * GB, 6, 2), (6.7 * GB, 4, 3), (4 * GB, 2, 6), (2.5 * GB, 1, 12)],
)
def test_the_largest_batch_that_fits_is_taken_and_a_step_has_as_many_images(
    available: int, batch_size: int, accumulation_steps: int
) -> None:
    memory = BatchMemory(first=2 * GB, each=GB, available=int(available))

    planned = plan_batch(auto(batch_size=2, accumulation_steps=6), memory, size_px=SIZE_PX)

    assert planned.batch_size == batch_size
    assert planned.accumulation_steps == accumulation_steps
    assert not planned.fit_batch


def test_a_batch_size_that_was_given_is_kept_and_told_if_it_is_too_large(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = run_config(batch_size=16)
    caplog.set_level("INFO")

    plan_batch(config, BatchMemory(2 * GB, GB, 100 * GB), size_px=SIZE_PX)
    planned = plan_batch(config, BatchMemory(2 * GB, GB, 8 * GB), size_px=SIZE_PX)

    assert planned == config
    fitting, tight = caplog.records
    assert "17.0 GB of 100.0 GB; 89 would fit" in fitting.getMessage()
    assert "17.0 GB of 8.0 GB; 6 would fit: set batch_size=auto" in tight.getMessage()
    assert (fitting.levelname, tight.levelname) == ("INFO", "WARNING")


def test_no_batch_that_fits_is_reported_with_what_to_set() -> None:
    with pytest.raises(MemoryRanOut, match=r"even one by one.*lower augment\.short_sides"):
        plan_batch(auto(), BatchMemory(2 * GB, GB, 2 * GB), size_px=SIZE_PX)


def test_where_memory_cannot_be_measured_a_number_is_asked_for(tmp_path: Path) -> None:
    assert not batch_memory._reset_peak(CPU, tmp_path)
    assert plan_batch(run_config(), None, size_px=SIZE_PX) == run_config()
    with pytest.raises(ValueError, match="set batch_size to a number"):
        plan_batch(auto(), None, size_px=SIZE_PX)


# In a separate process: memory that other tests freed would be used again and not be counted.
MEASURE = """
import torch
from dataclasses import replace
from model.configs import tiny
from model.training import batch_memory
config = replace(tiny(), model=replace(tiny().model, backbone_width=16))
memory = batch_memory.measure_batch(config, (512, 640), device=torch.device("cpu"))
model = batch_memory.DeformableDetr(config.model).train()
peak = batch_memory._try(model, 6, config=config, size_px=(512, 640))
print(memory.needed(6) - memory.first, peak - memory.first, memory.available)
"""


def test_what_is_measured_foretells_a_larger_batch() -> None:
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)

    foretold, found, available = map(int, done.stdout.split())

    assert foretold == pytest.approx(found, rel=0.3)
    assert foretold < available


def test_a_resumed_run_keeps_the_size_that_was_chosen(images: Path, tmp_path: Path) -> None:
    config = auto(epochs=1)
    longer = replace(config, epochs=2)
    memory = BatchMemory(first=2 * GB, each=GB, available=100 * GB)

    train(config, open_data(config, images), out_dir=tmp_path, measure=lambda *_, device: memory)
    status = train(longer, open_data(longer, images), out_dir=tmp_path, measure=None)

    assert status == 0
    saved = state_of(tmp_path)["fingerprint"]["config"]
    assert (saved["batch_size"], saved["accumulation_steps"]) == (4, 1)
    assert state_of(tmp_path)["progress"]["step"] == 4  # 6 images in 2 steps
    other = replace(longer, accumulation_steps=3)
    with pytest.raises(ValueError, match=r"config\.batch_size: 4 saved, 2 now"):
        train(other, open_data(other, images), out_dir=tmp_path)
