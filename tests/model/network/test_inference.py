"""The exported model: normalisation and the choice of the best detections."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bundle.preprocess import Preprocess
from model.configs import tiny
from model.network.deformable_detr import DeformableDetr
from model.network.inference import (
    DetectionModel,
    decode_detections,
    normalise,
    torch_predictor,
)


def test_padding_is_zero_after_normalisation() -> None:
    images = torch.full((1, 2, 3, 3), 200, dtype=torch.uint8)
    mask = torch.tensor([[[False, False, True], [False, False, True]]])

    result = normalise(images, mask, preprocess=Preprocess())

    assert result.shape == (1, 3, 2, 3)
    assert not result[..., 2].any()
    torch.testing.assert_close(result[0, 0, 0, 0].item(), (200 - 123.675) / 58.395)


def test_channels_stay_last_in_memory_where_convolutions_are_faster() -> None:
    images = torch.zeros(2, 4, 6, 3, dtype=torch.uint8)

    result = normalise(images, torch.zeros(2, 4, 6, dtype=torch.bool), preprocess=Preprocess())

    assert result.is_contiguous(memory_format=torch.channels_last)


def test_detections_are_picked_within_their_own_image() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 4, generator=generator)
    boxes = 0.3 + 0.4 * torch.rand(3, 7, 4, generator=generator)

    scores, labels, corners = decode_detections(logits, boxes, num_detections=5)

    for b in range(3):
        order = np.argsort(-logits[b].flatten().numpy(), kind="stable")[:5]
        assert labels[b].tolist() == (order % 4).tolist()
        cx, cy, w, h = boxes[b][order // 4].T
        expected = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), 1).clamp(0, 1)
        torch.testing.assert_close(corners[b], expected)
        torch.testing.assert_close(scores[b], logits[b].flatten()[order].sigmoid())


@pytest.mark.parametrize(("queries", "classes", "expected"), [(4, 2, 8), (300, 80, 100)])
def test_at_most_every_query_and_class_is_returned(
    queries: int, classes: int, expected: int
) -> None:
    scores, _, _ = decode_detections(
        torch.zeros(1, queries, classes), torch.zeros(1, queries, 4), num_detections=100
    )

    assert scores.shape == (1, expected)


def test_the_inference_model_answers_uint8_images() -> None:
    config = tiny()
    model = DetectionModel(DeformableDetr(config.model), config.preprocess).eval()
    images = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)

    scores, labels, boxes = model(images, torch.zeros(2, 64, 96, dtype=torch.bool))

    assert scores.shape == labels.shape == (2, 15)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (scores.diff(dim=1) <= 0).all()


def test_a_model_in_training_predicts_without_its_dropout() -> None:
    config = replace(tiny().model, dropout=0.5)
    model = DetectionModel(DeformableDetr(config), Preprocess()).train()
    images, padding_mask = np.full((1, 48, 64, 3), 90, np.uint8), np.zeros((1, 48, 64), np.bool_)

    first, second = (torch_predictor(model.train())(images, padding_mask) for _ in range(2))

    np.testing.assert_array_equal(first.scores, second.scores)
