import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from bundle.known_answers import read_known_answers
from bundle.manifest import ClassInfo, Manifest, Precision
from bundle.preprocess import decode_image, pad_batch
from export.__main__ import main
from export.bundle_writer import batch_limit, default_name, read_samples, smallest_side
from export.precisions import RECIPES
from model.checkpoints.checkpoint_file import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from model.config import Variant
from model.configs import CONFIGS, tiny
from model.data import digits
from model.data.evaluation_data import open_evaluation_data
from model.network.deformable_detr import DeformableDetr
from model.network.inference import torch_predictor

FIXTURE = Path("tests/data/coco_fixture12")


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint file of a tiny model."""
    config = tiny()
    path = tmp_path / "tiny.safetensors"
    classes = digits.CLASSES[: config.model.num_classes]
    detector = DeformableDetr(config.model)
    save_checkpoint(path, detector, config=config, classes=classes, provenance={}, metrics={})
    return path


@pytest.mark.parametrize(
    ("name", "side"), [("base", 1), ("refine", 1), ("two_stage", 128), ("demo", 64)]
)
def test_the_smallest_square_has_a_token_for_every_query(name, side):
    assert smallest_side(CONFIGS[name]().model) == side


def test_many_queries_need_a_larger_square():
    model = replace(tiny().model, variant=Variant.TWO_STAGE, num_queries=900)

    assert smallest_side(model) == 224  # 784 + 196 + 49 + 16 tokens; 192 has 765


@pytest.mark.parametrize(("name", "images"), [("base", 1), ("small", 8), ("demo", 8)])
def test_large_images_run_one_by_one_and_small_ones_in_batches(name, images):
    assert batch_limit(CONFIGS[name]().preprocess) == images


def test_a_directory_that_is_not_a_bundle_is_not_replaced(checkpoint, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "mine.jpg").write_bytes(b"precious")

    status = main([str(checkpoint), "--out", str(photos)])

    assert status == 1
    assert "is not a bundle; name a new directory" in capsys.readouterr().err
    assert names_in(photos) == ["mine.jpg"]


def test_a_file_is_not_replaced(checkpoint, tmp_path, capsys):
    status = main([str(checkpoint), "--out", str(checkpoint)])

    assert status == 1
    assert "is not a bundle" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_named(tmp_path, capsys):
    status = main([str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "bundle")])

    assert status == 1
    assert "no such checkpoint; make train" in capsys.readouterr().err
    assert names_in(tmp_path) == []


def test_a_sample_that_is_not_an_image_is_named_before_anything_is_written(
    checkpoint, tmp_path, capsys
):
    text = tmp_path / "notes.jpg"
    text.write_text("not an image")

    status = main([str(checkpoint), "--out", str(tmp_path / "bundle"), "--samples", str(text)])

    assert status == 1
    assert str(text) in capsys.readouterr().err
    assert names_in(tmp_path) == ["notes.jpg", "tiny.safetensors"]


def test_samples_are_validation_images_with_boxes(checkpoint):
    data = open_evaluation_data(FIXTURE, "val", classes=())

    samples = read_samples(load_checkpoint(checkpoint), None, data=data)

    boxed = {entry["image_id"] for entry in data.ground_truth()["annotations"]}
    sizes = {data.read_image(i).shape for i in range(len(data)) if data.image_id(i) in boxed}
    assert list(samples) == [f"samples/{number}.jpg" for number in (1, 2, 3, 4)]
    assert len(set(samples.values())) == 4
    assert {decode_image(content).shape for content in samples.values()} <= sizes


def test_export_takes_samples_from_its_data(checkpoint, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    names = [{"id": info.id, "name": info.name} for info in load_checkpoint(checkpoint).classes]
    image = {"id": 1, "file_name": "cut-short.png", "width": 128, "height": 128}
    content = {"images": [image], "annotations": [], "categories": names}
    (data / "val.json").write_text(json.dumps(content))
    (data / "cut-short.png").write_bytes(Path("bundles/demo/samples/1.png").read_bytes()[:-2000])

    status = main([str(checkpoint), "--out", str(tmp_path / "bundle"), "--data", str(data)])

    assert status == 1
    assert "cut-short.png" in capsys.readouterr().err
    assert names_in(tmp_path) == ["data", "tiny.safetensors"]


def test_there_are_no_samples_where_none_are_named(checkpoint):
    data = open_evaluation_data(FIXTURE, "val", classes=())

    assert read_samples(load_checkpoint(checkpoint), [], data=data) == {}


def test_data_of_other_classes_is_refused(checkpoint, tmp_path, capsys):
    status = main([str(checkpoint), "--out", str(tmp_path / "bundle"), "--data", str(FIXTURE)])

    assert status == 1
    assert "classes of the data set that the model does not have: " in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(checkpoint, tmp_path, capsys):
    loaded = load_checkpoint(checkpoint)
    del loaded.state_dict["level_embed"]
    write_checkpoint(loaded, checkpoint)

    status = main([str(checkpoint), "--out", str(tmp_path / "bundle")])

    assert status == 1
    assert "level_embed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(Variant))
def test_a_bundle_loads_and_tells_where_it_comes_from(exported, variant):
    small = exported(variant)

    manifest = Manifest.load(small.directory)

    checkpoint = load_checkpoint(small.checkpoint)
    assert manifest == small.manifest
    assert manifest.name == "small"
    assert manifest.variant == variant
    assert manifest.classes == checkpoint.classes
    assert manifest.metrics == checkpoint.metrics
    assert manifest.thresholds == checkpoint.thresholds is not None
    assert manifest.provenance["weights"] == checkpoint.provenance
    assert manifest.provenance["config"] == "tiny"
    assert manifest.provenance["versions"]["torch"].startswith(torch.__version__.split("+")[0])


@pytest.mark.slow
def test_whoever_may_read_other_new_files_may_read_a_bundle(exported, tmp_path):
    # A container's user is not the one who exported it.
    directory = exported(Variant.TWO_STAGE).directory
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    rights = {path.is_dir(): path.stat().st_mode for path in tmp_path.iterdir()}

    wrong = [path for path in (directory, *directory.rglob("*"))
             if path.stat().st_mode != rights[path.is_dir()]]  # fmt: skip

    assert wrong == []


def test_the_smallest_side_is_told_to_the_service(exported):
    assert exported(Variant.BASE).manifest.preprocess.min_side == 1
    assert exported(Variant.TWO_STAGE).manifest.preprocess.min_side == 64


@pytest.mark.slow
def test_no_more_detections_are_promised_than_queries_and_classes_make(exported):
    assert exported(Variant.BASE).manifest.num_detections == 10
    assert exported(Variant.REFINE).manifest.num_detections == 15


@pytest.mark.slow
def test_the_report_is_in_the_bundle(exported):
    small = exported(Variant.REFINE)

    report = json.loads((small.directory / "report.json").read_text())

    names = ("one image", "padded batch", "odd sizes", "one pixel")
    found = [(comparison["runtime"], comparison["name"]) for comparison in report["comparisons"]]
    assert found == [(kind, name) for kind in ("onnxruntime", "openvino") for name in names]
    assert all(comparison["passed"] for comparison in report["comparisons"])
    assert "report.json" in small.manifest.files


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(Variant))
def test_every_engine_was_tried_on_the_known_answers_alone_and_padded(exported, variant):
    bundle = exported(variant)

    reports = json.loads((bundle.directory / "report.json").read_text())["known_answers"]
    assert [report["runtime"] for report in reports] == ["onnxruntime", "openvino"]
    assert min(report["tries"] for report in reports) >= 3 + bundle.manifest.max_batch_size


@pytest.mark.slow
def test_known_answers_are_those_of_the_model_for_each_image_alone(exported):
    small = exported(Variant.TWO_STAGE)

    for image, expected in read_known_answers(small.directory):
        (found,) = torch_predictor(small.model)(*pad_batch([image], 64)).rows()
        assert np.array_equal(found.labels, expected.labels)
        assert found.scores == pytest.approx(expected.scores, abs=1e-6)
        assert found.boxes == pytest.approx(expected.boxes, abs=1e-6)


@pytest.mark.slow
def test_a_model_of_digits_comes_with_sample_images(exported):
    small = exported(Variant.TWO_STAGE)

    assert small.manifest.samples == tuple(f"samples/{i}.png" for i in (1, 2, 3, 4))
    assert names_in(small.directory / "samples") == ["1.png", "2.png", "3.png", "4.png"]


@pytest.mark.slow
def test_a_model_of_other_things_has_no_samples_of_its_own(exported):
    assert exported(Variant.BASE).manifest.samples == ()
    assert not (exported(Variant.BASE).directory / "samples").exists()


def test_every_precision_of_a_bundle_has_its_recipe():
    assert tuple(RECIPES) == get_args(Precision)


@pytest.mark.parametrize(
    ("path", "provenance", "name"),
    [
        ("runs/small/best.safetensors", {"data": {"dataset": "bccd"}}, "bccd"),
        ("runs/bccd/best.safetensors", {"data": {"dataset": ""}}, "bccd"),
        ("runs/bccd/last.safetensors", {}, "bccd"),
        ("weights/two_stage.safetensors", {"data": None}, "two_stage"),
        ("runs/x/best.safetensors", {"data": {"dataset": "digits"}}, "tiny"),
    ],
)
def test_a_model_is_called_like_its_data_or_its_file(path, provenance, name):
    config = tiny()
    classes = tuple(ClassInfo(id=i, name=str(i)) for i in range(config.model.num_classes))
    checkpoint = Checkpoint(Path(path), config, classes, provenance, {}, {})

    assert default_name(checkpoint) == name
