"""Training runs: interrupted anywhere they go on exactly, and what goes wrong is said."""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.checkpoints.checkpoint_file import load_checkpoint
from model.config import TrainConfig
from model.configs import finetune, tiny
from model.data.loading import RunData, open_data
from model.data.workers import LoadingFailed
from model.train import main, train

ROOT = Path(__file__).parents[2]
COLOURS = {1: (220, 40, 40), 5: (40, 220, 40), 9: (60, 60, 240)}  # by category id


def write_images(
    directory: Path,
    *,
    num_train: int = 6,
    num_val: int = 2,
    boxes_per_image: int = 2,
    categories: dict[int, tuple[int, int, int]] = COLOURS,
) -> Path:
    """A data set in COCO's format: rectangles, each class in its colour, on grey."""
    rng = np.random.default_rng(0)
    for split, num_images in (("train", num_train), ("val", num_val)):
        images: list[dict] = []
        annotations: list[dict] = []
        (directory / "images" / split).mkdir(parents=True)
        for image_id in range(1, num_images + 1):
            height, width = 64 + 8 * (image_id % 3), 96
            pixels = np.full((height, width, 3), 110, np.uint8)
            for _ in range(boxes_per_image):
                category_id = int(rng.choice(list(categories)))
                w, h = (int(side) for side in rng.integers(16, 40, 2))
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                pixels[y : y + h, x : x + w] = categories[category_id]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": category_id,
                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                })  # fmt: skip
            name = f"{image_id}.png"
            Image.fromarray(pixels).save(directory / "images" / split / name)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": key, "name": f"class {key}"} for key in categories],
        }
        (directory / f"{split}.json").write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def run_config(**changes: Any) -> TrainConfig:
    """Four short epochs with all that must be restored: dropout, moving average, two parts."""
    defaults = {"epochs": 4, "batch_size": 2, "accumulation_steps": 2, "ema_decay": 0.9,
                "warmup_steps": 3, "num_threads": 1}  # fmt: skip
    return replace(tiny(), **(defaults | changes))


class Watched:
    """A data set that calls `at` before it gives out the image with that count."""

    def __init__(self, dataset: Any, count: int, at: Callable[[], None]) -> None:
        self._dataset = dataset
        self._left = count
        self._at = at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        self._count()
        return self._dataset[index]

    def read_image(self, index: int) -> Any:
        self._count()
        return self._dataset.read_image(index)

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._at()


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class PowerCut(BaseException):
    """The end of a process, which nothing in it can catch."""


def crash() -> None:
    raise PowerCut


def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash_loading() -> None:
    raise KeyError("bbox")


def run_out_of_memory() -> None:
    raise MemoryError("1 GB")


def state_of(out_dir: Path) -> dict[str, Any]:
    """All that a run would go on from, but for the time it took."""
    state = torch.load(out_dir / "last.training.pt", weights_only=True)
    del state["progress"]["seconds"], state["progress"]["start_seconds"]
    return state


def assert_equal(found: Any, expected: Any) -> None:
    """Bit for bit, through nested dicts and lists of tensors."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for item, expected_item in zip(found, expected, strict=True):
            assert_equal(item, expected_item)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where four epochs went in one session."""
    out_dir = tmp_path_factory.mktemp("uninterrupted")
    config = run_config()
    assert train(config, open_data(config, images), out_dir=out_dir) == 0
    return out_dir


def interrupted_data(data: RunData, split: str, count: int, at: Callable[[], None]) -> RunData:
    watched: dict[str, Any] = {split: Watched(getattr(data, split), count, at)}
    return replace(data, **watched)


# 6 images an epoch in 2 steps of 4 and 2, 2 images an evaluation
@pytest.mark.parametrize(
    ("split", "count", "number", "step"),
    [
        ("train", 2 * 6, signal.SIGTERM, 4),  # last step of epoch 2: 2 + 2 epochs are 4
        ("train", 6 + 1, signal.SIGINT, 3),  # in the middle of epoch 2
        ("val", 2 + 1, signal.SIGTERM, 4),  # evaluation of epoch 2
    ],
)
def test_a_stopped_run_goes_on_exactly(
    split: str,
    count: int,
    number: signal.Signals,
    step: int,
    images: Path,
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    config = run_config()
    data = open_data(config, images)

    status = train(config, interrupted_data(data, split, count, send(number)), out_dir=tmp_path)
    stopped_at = state_of(tmp_path)["progress"]["step"]
    resumed_status = train(config, data, out_dir=tmp_path)

    assert status == 128 + number
    assert stopped_at == step
    assert resumed_status == 0
    assert_equal(state_of(tmp_path), state_of(uninterrupted))
    for name in ("best.safetensors", "last.safetensors"):
        assert_equal(load_file(tmp_path / name), load_file(uninterrupted / name))


def test_a_crashed_run_goes_on_from_the_epoch_before(
    images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    config = run_config()
    data = open_data(config, images)

    with pytest.raises(PowerCut):
        train(config, interrupted_data(data, "train", 2 * 6 + 3, crash), out_dir=tmp_path)
    train(config, data, out_dir=tmp_path)

    assert_equal(state_of(tmp_path), state_of(uninterrupted))


def test_resume_takes_a_state_from_elsewhere(
    images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    config = run_config()
    data = open_data(config, images)
    first, second = tmp_path / "first", tmp_path / "second"
    train(config, interrupted_data(data, "train", 7, send(signal.SIGTERM)), out_dir=first)

    train(config, data, out_dir=second, resume=str(first / "last.training.pt"))

    assert_equal(state_of(second), state_of(uninterrupted))


def test_more_workers_train_the_same_weights(
    images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    config = run_config(num_workers=2)

    train(config, open_data(config, images), out_dir=tmp_path)

    assert_equal(state_of(tmp_path), state_of(uninterrupted))


def test_a_finished_run_says_so_and_changes_nothing(
    images: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config()
    before = digest(uninterrupted / "last.training.pt")
    caplog.set_level("INFO")

    status = train(config, open_data(config, images), out_dir=uninterrupted)

    assert status == 0
    assert "4 epochs done" in caplog.text
    assert digest(uninterrupted / "last.training.pt") == before


def test_more_epochs_go_on_as_if_there_had_always_been_so_many(
    images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    short, long = run_config(epochs=2), run_config()

    train(short, open_data(short, images), out_dir=tmp_path)
    status = train(long, open_data(long, images), out_dir=tmp_path)

    assert status == 0
    assert_equal(state_of(tmp_path), state_of(uninterrupted))


def test_the_same_data_under_another_name_go_on(images: Path, tmp_path: Path) -> None:
    config = run_config(epochs=1)
    train(config, open_data(config, images), out_dir=tmp_path / "out")
    renamed = tmp_path / "renamed"
    shutil.copytree(images, renamed)
    for split in ("train", "val"):
        (renamed / f"{split}.json").rename(renamed / f"instances_{split}.json")
    longer = run_config(epochs=2)

    status = train(longer, open_data(longer, renamed), out_dir=tmp_path / "out")

    assert status == 0
    assert state_of(tmp_path / "out")["progress"]["epoch"] == 2


@pytest.mark.parametrize("damage", ["cut short", "one bit", "gone"])
def test_a_damaged_state_falls_back_to_the_one_before(
    damage: str,
    images: Path,
    uninterrupted: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = run_config(epochs=2)
    train(config, open_data(config, images), out_dir=tmp_path)
    path = tmp_path / "last.training.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "one bit" else content[: len(content) // 2])
    longer = run_config()

    status = train(longer, open_data(longer, images), out_dir=tmp_path)

    assert status == 0
    assert "going on from the state before it" in caplog.text
    assert_equal(state_of(tmp_path), state_of(uninterrupted))


def test_a_damaged_state_without_one_before_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "last.training.pt").write_bytes(b"not a state")
    config = run_config()

    with pytest.raises(ValueError, match=r"last\.training\.pt is damaged"):
        train(config, open_data(config, images), out_dir=tmp_path)


def test_fewer_epochs_may_not_go_on(images: Path, uninterrupted: Path) -> None:
    config = run_config(epochs=3)

    with pytest.raises(ValueError, match=r"config\.epochs: 4 saved, 3 now"):
        train(config, open_data(config, images), out_dir=uninterrupted)


def test_another_configuration_may_not_go_on(images: Path, uninterrupted: Path) -> None:
    config = run_config(learning_rate=3e-4, epochs=5)

    with pytest.raises(ValueError, match="another run") as error:
        train(config, open_data(config, images), out_dir=uninterrupted)

    assert "config.learning_rate: 0.0002 saved, 0.0003 now" in str(error.value)
    assert "config.epochs" not in str(error.value)
    assert "config.seed" not in str(error.value)


def test_other_data_may_not_go_on(uninterrupted: Path, tmp_path: Path) -> None:
    config = run_config()
    data = open_data(config, write_images(tmp_path, num_train=7))

    with pytest.raises(ValueError, match=r"data\.train_images: 6 saved, 7 now"):
        train(config, data, out_dir=uninterrupted)


@pytest.mark.parametrize("content", [None, b"", b"not a state"])
def test_resuming_from_a_file_that_is_none_is_refused(
    content: bytes | None, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "last.training.pt"
    if content is not None:
        path.write_bytes(content)
    config = run_config()

    with pytest.raises(ValueError, match=str(path)):
        train(config, open_data(config, images), out_dir=tmp_path, resume=str(path))


def test_checkpoints_hold_the_average_and_where_it_comes_from(uninterrupted: Path) -> None:
    last = load_checkpoint(uninterrupted / "last.safetensors")
    state = state_of(uninterrupted)

    assert_equal(dict(last.state_dict), dict(state["average"]))
    assert [info.id for info in last.classes] == [1, 5, 9]
    assert last.provenance["epochs"] == 4
    assert last.provenance["steps"] == 8
    assert last.provenance["data"]["train_images"] == 6
    assert len(last.provenance["data"]["train_sha256"]) == 64
    assert last.provenance["config"] == "tiny"
    assert 0 <= last.metrics["AP"] <= 1
    assert list((uninterrupted / "tensorboard").glob("events*"))


def test_a_loss_that_is_not_finite_stops_the_run(images: Path, tmp_path: Path) -> None:
    config = run_config(num_workers=0)
    data = open_data(config, images)
    train(config, interrupted_data(data, "train", 7, send(signal.SIGTERM)), out_dir=tmp_path)
    before = {path.name: digest(path) for path in tmp_path.glob("last*")}
    boxes = data.train._boxes.copy()
    data.train._boxes[:] = np.nan

    with pytest.raises(ValueError, match="loss is not finite") as error:
        train(config, data, out_dir=tmp_path)

    data.train._boxes[:] = boxes
    assert "step 4 (epoch 2)" in str(error.value)
    assert "image ids [" in str(error.value)
    assert "first bad tensor: loss term" in str(error.value)
    assert {path.name: digest(path) for path in tmp_path.glob("last*")} == before


@pytest.mark.parametrize("num_classes", [1, 1000])
def test_the_data_set_decides_the_classes(num_classes: int, tmp_path: Path) -> None:
    categories = dict.fromkeys(range(1, num_classes + 1), COLOURS[1])
    directory = write_images(tmp_path / "data", num_train=2, num_val=1, categories=categories)
    config = run_config(epochs=1)

    train(config, open_data(config, directory), out_dir=tmp_path / "out")

    checkpoint = load_checkpoint(tmp_path / "out" / "last.safetensors")
    assert checkpoint.config.model.num_classes == len(checkpoint.classes) == num_classes


def test_images_and_batches_without_boxes_are_trained_on(tmp_path: Path) -> None:
    directory = write_images(tmp_path / "data", num_train=4)
    path = directory / "train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    path.write_text(json.dumps(content))
    config = run_config(epochs=1, batch_size=1, accumulation_steps=1)

    status = train(config, open_data(config, directory), out_dir=tmp_path / "out")

    assert status == 0
    assert state_of(tmp_path / "out")["progress"]["step"] == 4


def test_training_starts_from_a_checkpoint_of_other_classes(
    uninterrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    categories = {1: COLOURS[1], 2: COLOURS[5]}
    directory = write_images(tmp_path / "data", num_train=2, num_val=1, categories=categories)
    config = run_config(epochs=1, backbone_init="checkpoint")
    caplog.set_level("INFO")

    train(
        config,
        open_data(config, directory),
        out_dir=tmp_path / "out",
        init=uninterrupted / "best.safetensors",
    )

    assert "made anew for 2 classes" in caplog.text
    stem = "backbone.conv1.weight"  # frozen: as it came
    found = load_file(tmp_path / "out" / "last.safetensors")[stem]
    assert torch.equal(found, load_file(uninterrupted / "best.safetensors")[stem])


def test_fine_tuning_needs_a_checkpoint(images: Path, tmp_path: Path) -> None:
    config = finetune()

    with pytest.raises(ValueError, match="--init CHECKPOINT"):
        train(config, open_data(config, images), out_dir=tmp_path / "out")


def test_a_fatal_fault_of_the_data_stops_before_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_images(tmp_path / "data")
    (directory / "images" / "train" / "3.png").unlink()

    status = main(["--config", "tiny", "--data", str(directory), "--out", str(tmp_path / "out")])

    assert status == 1
    assert "missing-file: image 3" in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_validation_set_without_boxes_keeps_the_last_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_images(tmp_path / "data", num_train=2)
    content = json.loads((directory / "val.json").read_text())
    (directory / "val.json").write_text(json.dumps({**content, "annotations": []}))
    config = run_config(epochs=2)
    caplog.set_level("INFO")

    status = train(config, open_data(config, directory), out_dir=tmp_path / "out")

    assert status == 0
    assert "no-validation-boxes: no box to evaluate on" in caplog.text
    assert "epoch 2/2: no AP, as the validation images have no boxes" in caplog.text
    assert "nan" not in caplog.text
    best = load_checkpoint(tmp_path / "out" / "best.safetensors")
    assert best.provenance["epochs"] == 2
    assert best.metrics == {}


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
    assert f"saved after step {step}: the same command goes on from there" in str(error.value)
    assert step == max(1, num_workers)
    assert "\n" not in str(error.value)
    assert multiprocessing.active_children() == []


def test_a_run_whose_worker_was_killed_goes_on_exactly(
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "huge"], "there are: base, refine, two_stage"),
        (["--config", "tiny"], "needs --data DIR"),
        (["--config", "demo", "--data", "."], "takes no --data"),
        (["--config", "tiny", "--data", "nowhere"], "no annotations of split 'train'"),
    ],
)
def test_a_command_that_cannot_work_says_why(
    arguments: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(arguments) == 1
    assert message in caplog.text


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
    assert b"goes on from here" in seen
    assert 1 <= state_of(out_dir)["progress"]["step"] < 60
    config = tiny()
    assert train(config, open_data(config, directory), out_dir=out_dir) == 0
    assert state_of(out_dir)["progress"]["step"] == 60


@pytest.mark.slow
def test_two_images_are_learnt_by_heart(tmp_path: Path) -> None:
    directory = write_images(tmp_path / "data", num_train=2, num_val=2)
    for path in (directory / "images" / "train").iterdir():  # what is trained is evaluated
        (directory / "images" / "val" / path.name).write_bytes(path.read_bytes())
    (directory / "val.json").write_bytes((directory / "train.json").read_bytes())
    config = run_config(
        augment=None,
        epochs=120,
        accumulation_steps=1,
        learning_rate=2e-3,
        lr_drop_epochs=(100,),
        clip_norm=1.0,
        model=replace(tiny().model, frozen_stages=-1, train_batch_norm=True, dropout=0.0),
    )

    train(config, open_data(config, directory), out_dir=tmp_path / "out")

    assert load_checkpoint(tmp_path / "out" / "best.safetensors").metrics["AP"] > 0.8
