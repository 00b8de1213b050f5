"""The validation loss, against the losses of training on the same images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.detect import make_batch
from bundle.manifest import ClassInfo
from model.config import TrainConfig, Variant
from model.data.coco import CocoDataset
from model.data.data_set import open_data_set
from model.evaluation.evaluation import evaluate
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel, normalise, torch_predictor
from model.training.losses import compute_losses, loss_normalisers
from model.training.validation_loss import ValidationLoss
from tests.model.runs import run_config


def loss_by_hand(model: DeformableDetr, dataset: CocoDataset, config: TrainConfig) -> float:
    """The sum over all images, each run alone, divided by the pairs of all of them."""
    samples = [dataset[index] for index in range(len(dataset))]
    normalisers = loss_normalisers(
        [target for _, target in samples],
        num_queries=config.model.num_queries, num_tokens=None, config=config.loss,
    )  # fmt: skip
    total = 0.0
    for image, target in samples:
        batch = make_batch([image], config.preprocess)
        arrays = torch.from_numpy(batch.images), torch.from_numpy(batch.padding_mask)
        outputs = model(normalise(*arrays, preprocess=config.preprocess), arrays[1])
        terms = compute_losses(outputs, [target], config=config.loss, normalisers=normalisers)
        total += sum(float(term) for term in terms.values())
    return total


@pytest.mark.parametrize("variant", [Variant.BASE, Variant.TWO_STAGE])
def test_it_is_the_loss_of_training_over_all_images(variant: Variant, images: Path) -> None:
    config = run_config()
    config = replace(config, model=replace(config.model, variant=variant))
    dataset = CocoDataset(open_data_set(images).open("val"))
    detector = DeformableDetr(config.model).eval()
    model = DetectionModel(detector, config.preprocess)
    loss = ValidationLoss(
        model, config, ground_truth=dataset.ground_truth(), classes=dataset.classes
    )

    with torch.inference_mode():
        expected = loss_by_hand(detector, dataset, config)
    metrics = evaluate(
        loss.predict, dataset, preprocess=config.preprocess, classes=dataset.classes,
        follow=loss.add,
    )  # fmt: skip
    plain = evaluate(
        torch_predictor(model), dataset, preprocess=config.preprocess, classes=dataset.classes
    )

    assert loss.total() == pytest.approx(expected, rel=1e-5)
    assert metrics.results == plain.results


def test_labels_are_those_of_the_model_and_crowds_are_no_targets() -> None:
    config = run_config()
    model = DetectionModel(DeformableDetr(config.model).eval(), config.preprocess)
    classes = [ClassInfo(id=number, name=str(number)) for number in (5, 9, 1)]
    box = {"id": 1, "image_id": 3, "category_id": 1, "bbox": [-8, 0, 40, 32], "iscrowd": 0}
    truth = {
        "images": [{"id": 3, "height": 64, "width": 96}],
        "annotations": [box, box | {"iscrowd": 1}, box | {"bbox": [0, 0, 0, 9]}],
        "categories": [{"id": 1, "name": "1"}],
    }
    pixels, mask = np.zeros((1, 64, 96, 3), np.uint8), np.zeros((1, 64, 96), np.bool_)
    target = {
        "labels": torch.tensor([2]),
        "boxes": torch.tensor([[16 / 96, 0.25, 32 / 96, 0.5]]),
        "size": torch.tensor([64, 96]),
    }

    loss = ValidationLoss(model, config, ground_truth=truth, classes=classes)
    loss.predict(pixels, mask)
    loss.add([3])

    with torch.inference_mode():
        outputs = model.raw_outputs(torch.from_numpy(pixels), torch.from_numpy(mask))
        terms = compute_losses(outputs, [target], config=config.loss)
    assert loss.total() == pytest.approx(sum(float(term) for term in terms.values()), rel=1e-5)
