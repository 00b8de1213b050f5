"""Behaviour of batching: padding, masks, targets."""

import numpy as np
import pytest
import torch

from model.data.collate import MicroBatch, collate, pack, unpack
from model.data.transforms import Sample, to_target


def _pair(height: int, width: int, num_boxes: int) -> tuple[np.ndarray, dict]:
    boxes = np.tile(np.array([[0, 0, width / 2, height]], dtype=np.float32), (num_boxes, 1))
    image = np.full((height, width, 3), 200, dtype=np.uint8)
    return image, to_target(Sample(image, boxes, np.zeros(num_boxes, dtype=np.int64)), image_id=7)


def test_images_are_padded_at_the_bottom_and_right_with_zeros():
    images, padding_mask, _ = collate([_pair(20, 40, 1), _pair(30, 10, 2)])

    assert images.shape == (2, 30, 40, 3)
    assert images.dtype == torch.uint8
    assert padding_mask.dtype == torch.bool
    assert not padding_mask[0, :20].any()
    assert padding_mask[0, 20:].all()
    assert padding_mask[1, :, 10:].all()
    assert (images[~padding_mask] == 200).all()
    assert (images[padding_mask] == 0).all()


def test_targets_stay_relative_to_the_unpadded_image():
    _, _, targets = collate([_pair(20, 40, 1), _pair(30, 10, 2)])

    assert targets[0]["size"].tolist() == [20, 40]
    torch.testing.assert_close(targets[1]["boxes"], torch.tensor([[0.25, 0.5, 0.5, 1.0]] * 2))
    assert targets[0]["image_id"] == 7


def test_an_image_without_boxes_keeps_box_shape():
    _, _, targets = collate([_pair(8, 8, 0)])

    assert targets[0]["boxes"].shape == (0, 4)
    assert targets[0]["labels"].dtype == torch.int64


def test_small_images_are_padded_to_the_smallest_side_the_graph_takes():
    images, padding_mask, _ = collate([_pair(8, 100, 0)], min_side=64)

    assert images.shape == (1, 64, 100, 3)
    assert padding_mask[0, 8:].all()


@pytest.mark.parametrize("counts", [(2, 0, 1), (0,), ()])
def test_a_batch_is_unpacked_as_it_was_packed(counts: tuple[int, ...]) -> None:
    batch: MicroBatch = (torch.zeros(0, 4, 4, 3), torch.zeros(0, 4, 4), [])
    if counts:
        batch = collate([_pair(8 + count, 16, count) for count in counts])

    packed = pack(batch)
    images, padding_mask, targets = unpack(packed)

    assert sum(isinstance(part, torch.Tensor) for part in packed) == 5
    assert torch.equal(images, batch[0])
    assert torch.equal(padding_mask, batch[1])
    for found, expected in zip(targets, batch[2], strict=True):
        assert found.keys() == expected.keys()
        assert found["image_id"] == expected["image_id"]
        for name in ("labels", "boxes", "size"):
            assert torch.equal(found[name], expected[name])
            assert found[name].dtype == expected[name].dtype
