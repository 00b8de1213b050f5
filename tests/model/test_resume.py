"""A run interrupted anywhere resumes exactly; a different run is not resumed."""

import shutil
import signal
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.data.loading import open_data
from model.training.carried_curves import carry_curves
from model.training.loop import train
from tests.model.runs import (
    PowerCut,
    assert_equal,
    crash,
    digest,
    epochs_of,
    interrupted_data,
    run_config,
    send,
    state_of,
    write_images,
)


# 6 images an epoch in 2 steps of 4 and 2, 2 images an evaluation
@pytest.mark.parametrize(
    ("split", "count", "number", "step"),
    [
        ("train", 2 * 6, signal.SIGTERM, 4),  # last step of epoch 2: 2 + 2 epochs are 4
        ("train", 6 + 1, signal.SIGINT, 3),  # in the middle of epoch 2
        ("val", 2 + 1, signal.SIGHUP, 4),  # evaluation of epoch 2
    ],
)
@pytest.mark.usefixtures("terminal_signals")
def test_a_stopped_run_resumes_exactly(
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
    assert epochs_of(tmp_path) == epochs_of(uninterrupted)
    for name in ("best.safetensors", "last.safetensors"):
        assert_equal(load_file(tmp_path / name), load_file(uninterrupted / name))


def test_a_crashed_run_resumes_from_the_epoch_before(
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
    assert epochs_of(second) == epochs_of(uninterrupted)
    curves = EventAccumulator(str(second / "tensorboard")).Reload()
    assert [point.step for point in curves.Scalars("validation/loss")] == [2, 4, 6, 8]


def test_a_state_of_an_earlier_epoch_takes_along_the_epochs_before_it_only(
    uninterrupted: Path, tmp_path: Path
) -> None:
    another = tmp_path / "metrics.csv"
    another.write_text("epoch,loss\n1,7\n2,7\n3,7\n4,7\n")

    carry_curves(
        {"progress": {"epoch": 2}},
        out_dir=tmp_path,
        state_path=uninterrupted / "last.training.pt",
    )

    assert epochs_of(tmp_path) == epochs_of(uninterrupted)[:2]


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
    assert "done with epoch 4" in caplog.text
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


def middle_of_a_tensor(path: Path) -> int:
    """Where in the file the largest tensor is; between tensors a bit may mean nothing."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    return entry.header_offset + entry.file_size // 2


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
    content[middle_of_a_tensor(path)] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "one bit" else content[: len(content) // 2])
    longer = run_config()

    status = train(longer, open_data(longer, images), out_dir=tmp_path)

    assert status == 0
    assert "continuing from the state before it" in caplog.text
    assert_equal(state_of(tmp_path), state_of(uninterrupted))


def test_a_damaged_state_does_not_replace_the_one_before(
    images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(uninterrupted, tmp_path / "out")
    (out_dir / "last.training.pt").write_bytes(b"damaged")
    before = digest(out_dir / "previous.training.pt")
    config = run_config(epochs=5)
    data = interrupted_data(open_data(config, images), "val", 1, send(signal.SIGTERM))

    status = train(config, data, out_dir=out_dir)

    assert status == 143
    assert digest(out_dir / "previous.training.pt") == before
    assert state_of(out_dir)["progress"]["step"] == 8


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


def test_changed_pixels_are_told_when_a_run_goes_on(
    uninterrupted: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = shutil.copytree(images, tmp_path / "data")
    Image.new("RGB", (96, 72)).save(directory / "images" / "val" / "1.png")
    config = run_config()

    status = train(config, open_data(config, directory), out_dir=uninterrupted)

    assert status == 0
    assert "image files of val have changed since" in caplog.text
    assert "another OUT= (--out) trains on them from the start" in caplog.text
