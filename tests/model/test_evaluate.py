"""Evaluation end to end: preparation, prediction, scaling back, scoring."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.manifest import ClassInfo
from bundle.postprocess import RawOutput
from bundle.preprocess import Preprocess
from model.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from model.configs import demo, tiny
from model.data.coco import CocoDataset
from model.data.data_set import open_data_set
from model.data.digits import CLASSES, DigitsDataset
from model.data.evaluation_data import open_evaluation_data, require_classes
from model.evaluate import main
from model.evaluation.evaluation import evaluate
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel, torch_predictor
from model.training.precision import set_tf32
from tests.model.html_page import read_page

FIXTURE = Path("tests/data/coco_fixture12")
NUM_DETECTIONS = 60
SMALL = Preprocess(short_side=100, long_side=160, min_side=32)


def _perfect(dataset):
    """A detector that knows the answers, in the order of the data set, whatever the batch size."""
    rows = iter(dataset[index][1] for index in range(len(dataset)))

    def predict(images, padding_mask):
        scores = np.zeros((len(images), NUM_DETECTIONS), np.float32)
        labels = np.zeros((len(images), NUM_DETECTIONS), np.int64)
        boxes = np.zeros((len(images), NUM_DETECTIONS, 4), np.float32)
        for row in range(len(images)):
            target = next(rows)
            count = len(target["labels"])
            centres, sizes = target["boxes"][:, :2], target["boxes"][:, 2:]
            scores[row, :count] = 0.9
            labels[row, :count] = target["labels"]
            boxes[row, :count, :2] = centres - sizes / 2
            boxes[row, :count, 2:] = centres + sizes / 2
        return RawOutput(scores, labels, boxes)

    return predict


@pytest.fixture(scope="module")
def photographs():
    return CocoDataset(open_data_set(FIXTURE).open("val"))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_detector_that_knows_the_answers_has_ap_1(photographs, batch_size):
    metrics = evaluate(
        _perfect(photographs), photographs, preprocess=SMALL,
        classes=photographs.classes, batch_size=batch_size,
    )  # fmt: skip

    assert metrics.numbers["AP"] == pytest.approx(1.0)
    assert metrics.numbers["AR100"] == pytest.approx(1.0)


def test_the_demo_set_can_be_solved():
    dataset = DigitsDataset("val", num_images=20)

    metrics = evaluate(_perfect(dataset), dataset, preprocess=Preprocess(), classes=CLASSES)

    assert metrics.numbers["AP"] == pytest.approx(1.0)


def test_the_detector_gets_what_the_service_would_give_it(photographs):
    seen = []

    def predict(images, padding_mask):
        seen.append((images, padding_mask))
        count = len(images)
        scores, boxes = np.zeros((count, 1), np.float32), np.zeros((count, 1, 4), np.float32)
        return RawOutput(scores, np.zeros((count, 1), np.int64), boxes)

    evaluate(
        predict, photographs, preprocess=SMALL, classes=photographs.classes, batch_size=7, limit=8
    )

    assert [images.shape[0] for images, _ in seen] == [7, 1]
    assert seen[0][0].dtype == np.uint8
    assert seen[0][1].any()
    assert not seen[1][1].any()
    assert min(seen[1][0].shape[1:3]) == 100


def test_a_limit_leaves_the_other_images_out_of_the_ground_truth(photographs):
    metrics = evaluate(
        _perfect(photographs), photographs, preprocess=SMALL, classes=photographs.classes, limit=2
    )

    kept = {photographs.image_id(0), photographs.image_id(1)}
    assert metrics.numbers["AP"] == pytest.approx(1.0)
    assert {result["image_id"] for result in metrics.results} <= kept


def test_the_model_may_order_its_classes_otherwise_and_know_more(photographs):
    classes = (ClassInfo(id=900, name="more"), *reversed(photographs.classes))
    label_of = {info.id: label for label, info in enumerate(classes)}
    new_labels = np.array([label_of[info.id] for info in photographs.classes])
    perfect = _perfect(photographs)

    def predict(images, padding_mask):
        scores, labels, boxes = perfect(images, padding_mask)
        return RawOutput(scores, new_labels[labels], boxes)

    metrics = evaluate(predict, photographs, preprocess=SMALL, classes=classes)

    assert metrics.numbers["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(("identifier", "name"), [(2, "cat"), (1, "kitten")])
def test_another_id_or_name_is_another_class(identifier, name):
    with pytest.raises(ValueError, match=f"{identifier} {name}"):
        require_classes([ClassInfo(id=1, name="cat")], [ClassInfo(id=identifier, name=name)])


def test_an_output_that_is_not_finite_names_the_image(photographs):
    def predict(images, padding_mask):
        scores, boxes = np.full((1, 1), np.nan, np.float32), np.zeros((1, 1, 4), np.float32)
        return RawOutput(scores, np.zeros((1, 1), np.int64), boxes)

    with pytest.raises(ValueError, match=f"image {photographs.image_id(0)} is not finite"):
        evaluate(predict, photographs, preprocess=SMALL, classes=photographs.classes)


def test_a_torch_model_predicts_arrays_of_the_graphs_shapes():
    config = tiny()
    predict = torch_predictor(DetectionModel(DeformableDetr(config.model), config.preprocess))

    scores, labels, boxes = predict(
        np.zeros((2, 96, 128, 3), np.uint8), np.zeros((2, 96, 128), np.bool_)
    )

    assert scores.shape == labels.shape == (2, config.model.num_detections)
    assert boxes.shape == (2, config.model.num_detections, 4)
    assert (np.diff(scores) <= 0).all()
    assert labels.dtype == np.int64


def test_only_a_model_of_the_digits_is_evaluated_without_data():
    assert len(open_evaluation_data(None, "val", classes=CLASSES)) == 200
    with pytest.raises(ValueError, match="DATA=DIR"):
        open_evaluation_data(None, "val", classes=CLASSES[:9])


@pytest.fixture
def unlabelled(tmp_path):
    """A data set of one image, whose file is absent, and no annotations."""
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "images").mkdir()
    (tmp_path / "val.json").write_text(json.dumps(content))
    return tmp_path


def test_a_data_set_with_faults_is_refused(unlabelled):
    with pytest.raises(ValueError, match=r"missing-file: image 1: .*a\.png"):
        open_evaluation_data(unlabelled, "val", classes=CLASSES)


def test_a_data_set_without_annotations_can_be_evaluated(unlabelled):
    Image.new("RGB", (50, 40)).save(unlabelled / "images" / "a.png")
    dataset = open_evaluation_data(unlabelled, "val", classes=CLASSES)

    metrics = evaluate(_perfect(dataset), dataset, preprocess=SMALL, classes=dataset.classes)

    assert metrics.defined == {}
    assert len(metrics.results) == NUM_DETECTIONS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained checkpoint of the fixture's 80 classes."""
    config = tiny()
    config = replace(config, model=replace(config.model, num_classes=80))
    path = tmp_path_factory.mktemp("checkpoint") / "untrained.safetensors"
    classes = CocoDataset(open_data_set(FIXTURE).open("val")).classes
    save_checkpoint(
        path,
        DeformableDetr(config.model),
        config=config,
        classes=classes,
        provenance={},
        metrics={},
    )
    return path


def test_the_command_prints_the_report_and_writes_coco_results(checkpoint, tmp_path, capsys):
    out = tmp_path / "results.json"

    status = main([
        "--checkpoint", str(checkpoint), "--data", str(FIXTURE), "--out", str(out), "--limit", "3",
    ])  # fmt: skip

    printed = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert status == 0
    assert "\nAP     0." in printed
    assert printed.count("\n") == 1 + 80 + 1 + 1 + 12 + 1
    assert len(results) == 3 * tiny().model.num_detections
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}


def test_float32_is_as_exact_on_a_gpu_as_in_training(checkpoint, capsys):
    set_tf32(True)

    status = main(["--checkpoint", str(checkpoint), "--data", str(FIXTURE), "--limit", "1"])

    assert status == 0
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_the_page_says_whether_images_were_padded(checkpoint, tmp_path):
    arguments = ["--checkpoint", str(checkpoint), "--data", str(FIXTURE), "--limit", "1"]
    alone, padded = tmp_path / "alone.html", tmp_path / "padded.html"

    main([*arguments, "--report", str(alone)])
    main([*arguments, "--report", str(padded), "--padding", "32x0"])

    assert "AP with more padding was not measured here" in read_page(alone).text
    assert "not measured" not in read_page(padded).text
    assert "Every image had 32 more rows and 0 more columns of padding." in read_page(padded).text


def test_no_thresholds_are_saved_where_no_detection_is_right(checkpoint, tmp_path, capsys):
    path = Path(shutil.copy(checkpoint, tmp_path))

    status = main([
        "--checkpoint", str(path), "--data", str(FIXTURE), "--limit", "1", "--save-thresholds",
    ])  # fmt: skip

    assert status == 1
    assert "no detection is right, so there are no thresholds" in capsys.readouterr().err
    assert path.read_bytes() == checkpoint.read_bytes()


def test_thresholds_are_saved_in_the_checkpoint(checkpoint, tmp_path, capsys):
    path, out = Path(shutil.copy(checkpoint, tmp_path)), tmp_path / "results.json"
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    content = json.loads((FIXTURE / "instances.json").read_text())
    content |= {"images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}]}
    arguments = ["--checkpoint", str(path), "--data", str(tmp_path)]
    (tmp_path / "val.json").write_text(json.dumps(content | {"annotations": []}))
    main([*arguments, "--out", str(out)])
    (best,) = json.loads(out.read_text())[:1]
    (tmp_path / "val.json").write_text(json.dumps(content | {"annotations": [{"id": 1, **best}]}))

    status = main([*arguments, "--save-thresholds"])

    thresholds = load_checkpoint(path).thresholds
    assert status == 0
    assert thresholds is not None
    assert f"saved: best F1 at {thresholds.overall}" in capsys.readouterr().out
    assert thresholds.overall.recall == 1
    assert 0 < thresholds.overall.threshold <= best["score"]


def test_written_results_have_the_same_ap_again(checkpoint, tmp_path, capsys):
    out = tmp_path / "a new folder" / "results.json"
    arguments = ["--data", str(FIXTURE)]

    main(["--checkpoint", str(checkpoint), *arguments, "--out", str(out)])
    first = capsys.readouterr().out
    main(["--results", str(out), *arguments])
    second = capsys.readouterr().out

    assert first.startswith(second)


@pytest.fixture
def text_ids(tmp_path):
    """A data set of one image, whose ids are text."""
    content = {
        "images": [{"id": "image-b", "file_name": "a.png"}],
        "annotations": [
            {"id": "x", "image_id": "image-b", "category_id": "nut", "bbox": [8, 8, 20, 30]}
        ],
        "categories": [{"id": "nut", "name": "Nut"}, {"id": "bolt", "name": "Bolt"}],
    }
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "val.json").write_text(json.dumps(content))
    return tmp_path


def test_results_are_written_with_the_ids_of_a_data_set_whose_ids_are_text(text_ids):
    config = replace(tiny(), model=replace(tiny().model, num_classes=2))
    checkpoint, out = text_ids / "untrained.safetensors", text_ids / "out.json"
    save_checkpoint(
        checkpoint,
        DeformableDetr(config.model),
        config=config,
        classes=CocoDataset(open_data_set(text_ids).open("val")).classes,
        provenance={},
        metrics={},
    )

    main(["--checkpoint", str(checkpoint), "--data", str(text_ids), "--out", str(out)])

    results = json.loads(out.read_text())
    assert {entry["image_id"] for entry in results} == {"image-b"}
    assert {entry["category_id"] for entry in results} <= {"nut", "bolt"}


def test_results_may_have_the_ids_of_a_data_set_whose_ids_are_text(text_ids, capsys):
    entry = {"image_id": "image-b", "category_id": "nut", "bbox": [8, 8, 20, 30], "score": 0.9}
    (text_ids / "results.json").write_text(json.dumps([entry]))

    status = main(["--results", str(text_ids / "results.json"), "--data", str(text_ids)])

    assert status == 0
    assert "\nAP     1.000" in capsys.readouterr().out


def test_a_checkpoint_of_other_classes_is_refused(tmp_path, capsys):
    config = demo()
    path = tmp_path / "digits.safetensors"
    save_checkpoint(
        path,
        DeformableDetr(config.model),
        config=config,
        classes=CLASSES,
        provenance={},
        metrics={},
    )

    status = main(["--checkpoint", str(path), "--data", str(FIXTURE)])

    assert status == 1
    assert "1 person" in capsys.readouterr().err


def test_a_missing_checkpoint_is_a_message_and_exit_status_1(tmp_path, capsys):
    status = main(["--checkpoint", str(tmp_path / "absent.safetensors")])

    assert status == 1
    assert "absent.safetensors" in capsys.readouterr().err
