"""Training runs from start to end: what they write, start from and refuse."""

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import model.evaluate
from model.checkpoints.checkpoint_file import load_checkpoint
from model.configs import finetune, tiny
from model.data.loading import open_data
from model.evaluation.epoch_table import read_epochs
from model.train import main
from model.training.loop import train
from tests.model.html_page import read_page
from tests.model.runs import (
    COLOURS,
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


def test_a_run_ends_with_a_page_of_its_results(uninterrupted: Path) -> None:
    text = read_page(uninterrupted / "report.html").text

    epoch = load_checkpoint(uninterrupted / "best.safetensors").provenance["epochs"]
    assert f"{uninterrupted / 'best.safetensors'}, after epoch {epoch}" in text
    assert f"From {uninterrupted / 'metrics.csv'}." in text
    assert f"epoch {epoch}, evaluated here" in text
    assert re.search(r"AP 0\.\d{4} of images alone, 0\.\d{4} with \d+ rows and \d+ columns", text)
    assert "data.html, beside this page, shows what the model was trained on" in text


def test_the_best_checkpoint_has_the_results_of_its_run(
    images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"

    status = model.evaluate.main([
        *("--checkpoint", str(uninterrupted / "best.safetensors"), "--data", str(images)),
        *("--report", str(page)),
    ])  # fmt: skip

    found, expected = read_page(page), read_page(uninterrupted / "report.html")
    assert status == 0
    assert found.texts("td")[:36] == expected.texts("td")[:36]
    assert found.texts("figcaption") == expected.texts("figcaption")
    assert "ARGS='--padding" in found.text


def test_a_last_epoch_that_is_the_best_is_evaluated_once(images: Path, tmp_path: Path) -> None:
    data = open_data(config := run_config(epochs=1), images)
    most = 2 + 2 + 2  # images: alone, with padding, and drawn in the page

    status = train(config, interrupted_data(data, "val", most + 1, crash), out_dir=tmp_path)

    assert status == 0
    assert (tmp_path / "report.html").exists()


def test_a_run_stopped_before_its_page_is_written_writes_it_when_it_goes_on(
    images: Path, tmp_path: Path
) -> None:
    data = open_data(config := run_config(epochs=1), images)
    stopping = interrupted_data(data, "val", 2 + 1, send(signal.SIGTERM))  # with padding

    stopped = train(config, stopping, out_dir=tmp_path)
    was_written = (tmp_path / "report.html").exists()
    resumed = train(config, data, out_dir=tmp_path)

    assert (stopped, was_written, resumed) == (143, False, 0)
    assert "best.safetensors, after epoch 1" in read_page(tmp_path / "report.html").text


def test_every_epoch_is_in_the_table_and_in_tensorboard(uninterrupted: Path) -> None:
    rows = epochs_of(uninterrupted)
    events = EventAccumulator(str(uninterrupted / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("validation/loss")]

    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert list(rows[0])[:5] == [
        "epoch", "step", "learning_rate", "training_loss", "validation_loss",
    ]  # fmt: skip
    assert {"AP", "ARl", "AP class 1", "AP class 5", "AP class 9"} < rows[0].keys()
    assert min(float(row["training_loss"]) for row in rows) > 0
    assert [step for step, _ in curve] == [2, 4, 6, 8]
    assert [value for _, value in curve] == pytest.approx(
        [float(row["validation_loss"]) for row in rows], rel=1e-4
    )
    assert {"validation AP by class/class 5", "seconds of an epoch/loss"} <= set(
        events.Tags()["scalars"]
    )
    last = read_epochs(uninterrupted / "metrics.csv")[-1]
    assert 0 < last["loss_s"] < last["forward_s"] + last["backward_s"] < last["seconds"]


def test_a_run_ends_early_and_keeps_its_last_checkpoints(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(
        epochs=9, patience=1, keep_last=2, best_metric="loss", learning_rate=1e-12, ema_decay=None
    )
    data = open_data(config, images)
    caplog.set_level("INFO")

    status = train(config, data, out_dir=tmp_path)
    names = sorted(path.name for path in tmp_path.glob("epoch-*"))
    (tmp_path / "data.html").unlink()
    again = train(config, data, out_dir=tmp_path)

    num_epochs = len(epochs_of(tmp_path))
    losses = [float(row["validation_loss"]) for row in epochs_of(tmp_path)]
    best = load_checkpoint(tmp_path / "best.safetensors")
    assert (status, again) == (0, 0)
    assert not (tmp_path / "data.html").exists()  # a run that goes on says nothing about its data
    assert num_epochs < 9
    assert "stopping: no better epoch since epoch" in caplog.text
    assert names == [f"epoch-000{number}.safetensors" for number in (num_epochs - 1, num_epochs)]
    assert best.provenance["epochs"] == num_epochs - 1 == losses.index(min(losses)) + 1
    assert f"best validation loss {min(losses):.3f}" in caplog.text


def test_epochs_that_are_not_evaluated_change_no_step(
    images: Path, uninterrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(evaluate_every=3, keep_last=2)
    caplog.set_level("INFO")

    train(config, open_data(config, images), out_dir=tmp_path)

    last, expected = (load_checkpoint(d / "last.safetensors") for d in (tmp_path, uninterrupted))
    assert [row["epoch"] for row in epochs_of(tmp_path)] == ["1", "3", "4"]
    assert "epoch 2/4: loss " in caplog.text
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == [
        "epoch-0003.safetensors", "epoch-0004.safetensors"
    ]  # fmt: skip
    assert last.metrics == expected.metrics
    assert last.state_dict.keys() == expected.state_dict.keys()
    assert all(torch.equal(last.state_dict[name], x) for name, x in expected.state_dict.items())


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


@pytest.mark.slow
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

    assert "reset for num_classes=2" in caplog.text
    stem = "backbone.conv1.weight"  # frozen: as it came
    found = load_file(tmp_path / "out" / "last.safetensors")[stem]
    assert torch.equal(found, load_file(uninterrupted / "best.safetensors")[stem])


def test_fine_tuning_needs_a_checkpoint(images: Path, tmp_path: Path) -> None:
    config = finetune()

    with pytest.raises(ValueError, match="INIT=CHECKPOINT"):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "huge"], "known are: base, refine, two_stage"),
        (["--config", "tiny"], "needs DATA=DIR"),
        (["--config", "demo", "--data", "."], "takes no DATA="),
        (["--config", "tiny", "--data", "nowhere"], "DATA=nowhere does not exist"),
    ],
)
def test_a_command_that_cannot_work_says_why(
    arguments: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(arguments) == 1
    assert message in caplog.text


@pytest.mark.slow
def test_two_images_are_learnt_by_heart(tmp_path: Path) -> None:
    directory = write_images(tmp_path / "data", num_train=2, num_val=2)
    for path in (directory / "images" / "train").iterdir():  # what is trained is evaluated
        (directory / "images" / "val" / path.name).write_bytes(path.read_bytes())
    (directory / "val.json").write_bytes((directory / "train.json").read_bytes())
    _repeat(directory, times=6)  # so that few epochs have many steps: each ends with an evaluation
    config = run_config(
        augment=None,
        epochs=20,
        accumulation_steps=1,
        learning_rate=2e-3,
        lr_drop_epochs=(16,),
        clip_norm=1.0,
        model=replace(tiny().model, frozen_stages=-1, train_batch_norm=True, dropout=0.0),
    )

    train(config, open_data(config, directory), out_dir=tmp_path / "out")

    best = load_checkpoint(tmp_path / "out" / "best.safetensors")
    assert best.metrics["AP"] > 0.8
    assert best.thresholds is not None
    assert best.thresholds.overall.f1 > 0.8


def _repeat(directory: Path, times: int) -> None:
    """Copy every training image this many times, with its boxes."""
    path = directory / "train.json"
    content = json.loads(path.read_text())
    images, annotations = content["images"], content["annotations"]
    folder = directory / "images" / "train"
    for image in images:
        for number in range(times):
            shutil.copy(folder / image["file_name"], folder / f"{number}-{image['file_name']}")
    content["images"] = [
        image | {"id": image["id"] + 100 * number, "file_name": f"{number}-{image['file_name']}"}
        for number in range(times)
        for image in images
    ]
    content["annotations"] = [
        one | {"id": one["id"] + 100 * number, "image_id": one["image_id"] + 100 * number}
        for number in range(times)
        for one in annotations
    ]
    path.write_text(json.dumps(content))
