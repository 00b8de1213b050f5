"""What goes wrong in a run is said in one line, and no process is left."""

import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from model.configs import tiny
from model.data.loading import open_data
from model.data.workers import LoadingFailed
from model.network.deformable_detr import DeformableDetr
from model.training.loop import train
from model.training.memory import MemoryRanOut
from tests.model.runs import (
    ROOT,
    assert_equal,
    crash_loading,
    interrupted_data,
    kill_worker,
    run_config,
    run_out_of_memory,
    state_of,
    write_images,
)


def damage_pixels(path: Path) -> None:
    """Changes a PNG so that its header and its end are as they were."""
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("accident", "message"),
    [(run_out_of_memory, "no memory left to load images"),
     (crash_loading, "KeyError: 'bbox'")],
)  # fmt: skip
def test_what_goes_wrong_in_loading_is_one_line_and_the_step_saved(
    accident: Callable[[], None], message: str, num_workers: int, images: Path, tmp_path: Path
) -> None:
    config = run_config(num_workers=num_workers, accumulation_steps=1, batch_size=1)
    data = interrupted_data(open_data(config, images), "train", 2, accident)

    with pytest.raises(LoadingFailed, match=message) as error:
        train(config, data, out_dir=tmp_path)

    step = state_of(tmp_path)["progress"]["step"]
    assert f"saved after step {step}: the same command continues from there" in str(error.value)
    assert step == max(1, num_workers)
    assert "\n" not in str(error.value)
    assert multiprocessing.active_children() == []


def fail_forward(count: int, error: Exception) -> RemovableHandle:
    """Makes the forward pass of a training detector with that count raise an error, once."""
    left = [count]

    def fail(module: nn.Module, arguments: object) -> None:
        left[0] -= isinstance(module, DeformableDetr) and module.training
        if left[0] == 0:
            left[0] = -1
            raise error

    return register_module_forward_pre_hook(fail)


def test_a_run_whose_memory_ran_out_in_a_step_resumes_exactly(
    images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    data = open_data(run_config(), images)
    handle = fail_forward(
        5, torch.OutOfMemoryError("CUDA")
    )  # amid the second part of the third step

    with pytest.raises(MemoryRanOut, match=r"^no memory left: set batch_size=auto.*after step 2: "):
        train(run_config(), data, out_dir=tmp_path)
    handle.remove()
    train(run_config(), data, out_dir=tmp_path)

    assert_equal(state_of(tmp_path), state_of(uninterrupted))


@pytest.mark.slow
def test_a_run_whose_worker_was_killed_resumes_exactly(
    images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    config = run_config(num_workers=2)
    data = open_data(config, images)

    with pytest.raises(LoadingFailed, match=r"most often because memory ran out.*saved after step"):
        train(config, interrupted_data(data, "train", 3, kill_worker), out_dir=tmp_path)
    train(config, data, out_dir=tmp_path)

    assert multiprocessing.active_children() == []
    assert_equal(state_of(tmp_path), state_of(uninterrupted))


def processes_with(text: str) -> list[str]:
    """The command lines that hold a text, of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in lines if text in line]


WITH_WORKERS = """
import sys
from dataclasses import replace
from model.configs import CONFIGS, tiny
from model.train import main
CONFIGS["workers"] = lambda: replace(tiny(), num_workers=2, num_threads=1)
sys.exit(main(["--config", "workers", "--data", sys.argv[1], "--out", sys.argv[2]]))
"""


@pytest.mark.slow
def test_a_damaged_image_amid_an_epoch_ends_a_real_run(tmp_path: Path) -> None:
    directory = write_images(tmp_path / "data", num_train=12, num_val=1)
    damage_pixels(directory / "images" / "train" / "7.png")

    done = subprocess.run(
        [sys.executable, "-c", WITH_WORKERS, str(directory), str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert done.returncode == 1, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
    assert re.search(r"error: image 7, .*7\.png: the PNG image is damaged.*; saved after", line)
    assert "Traceback" not in done.stderr
    assert processes_with(str(tmp_path)) == []


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_of_a_run_with_workers(tmp_path: Path) -> None:
    directory = write_images(tmp_path / "data", num_train=60, num_val=1)
    command = [sys.executable, "-c", WITH_WORKERS, str(directory), str(tmp_path / "out")]

    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stderr is not None
        seen = b""
        while b"epoch 1/2" not in seen:
            seen += process.stderr.read(1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        seen += process.stderr.read()

    assert process.returncode == 130, seen.decode()
    assert b"Traceback" not in seen
    assert 1 <= state_of(tmp_path / "out")["progress"]["step"] < 60
    assert processes_with(str(tmp_path)) == []


@pytest.mark.slow
def test_sigterm_stops_a_real_run_which_goes_on(tmp_path: Path) -> None:
    directory = write_images(tmp_path / "data", num_train=60, num_val=1)
    out_dir = tmp_path / "out"
    command = [sys.executable, "-m", "model.train", "--config", "tiny",
               "--data", str(directory), "--out", str(out_dir)]  # fmt: skip

    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stderr is not None
        seen = b""
        while b"epoch 1/2" not in seen:
            seen += process.stderr.read(1)
        process.terminate()
        seen += process.stderr.read()

    assert process.returncode == 143, seen.decode()
    assert b"memory: batch_size 2 (x 1 accumulation_steps), images of up to 160x160" in seen
    assert b"continues from here" in seen
    assert 1 <= state_of(out_dir)["progress"]["step"] < 60
    config = tiny()
    assert train(config, open_data(config, directory), out_dir=out_dir) == 0
    assert state_of(out_dir)["progress"]["step"] == 60


def allow_small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))  # bytes; TensorBoard writes more at once


def test_a_disk_that_is_full_is_one_line_with_what_to_do(images: Path, tmp_path: Path) -> None:
    # Without -B, Python would leave truncated byte code behind.
    command = [sys.executable, "-B", "-m", "model.train", "--config", "tiny", "--data", str(images),
               "--out", str(tmp_path / "out"), "--set", "num_threads=1"]  # fmt: skip

    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, preexec_fn=allow_small_files_only
    )

    assert done.returncode == 1, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
    assert "error: the disk is full: " in line
    assert "Free some space, and the same command continues from the last save" in line
    assert "Traceback" not in done.stderr
