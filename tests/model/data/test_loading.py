"""Batches of an epoch: the same for any number of workers, and after an interruption."""

from dataclasses import replace
from itertools import chain

import pytest
import torch

from model.configs import demo
from model.data.digits import DigitsDataset
from model.data.loading import EpochSampler, epoch_batches, steps_per_epoch

CONFIG = replace(demo(), batch_size=2, accumulation_steps=2, num_workers=0)
NUM_IMAGES = 11  # three steps: 4, 4 and 3 images


def batches(epoch: int = 0, num_workers: int = 0, skip_steps: int = 0):
    dataset = DigitsDataset("train", seed=5, num_images=NUM_IMAGES)
    config = replace(CONFIG, num_workers=num_workers)
    return list(epoch_batches(dataset, config, epoch=epoch, skip_steps=skip_steps))


def image_ids(steps) -> list[list[int]]:
    return [[t["image_id"] for _, _, targets in step for t in targets] for step in steps]


def assert_same(found, expected) -> None:
    assert image_ids(found) == image_ids(expected)
    for step, expected_step in zip(found, expected, strict=True):
        for (images, mask, _), (other_images, other_mask, _) in zip(
            step, expected_step, strict=True
        ):
            assert torch.equal(images, other_images)
            assert torch.equal(mask, other_mask)


def test_an_epoch_holds_every_image_once() -> None:
    steps = batches()

    assert [len(ids) for ids in image_ids(steps)] == [4, 4, 3]
    assert sorted(chain(*image_ids(steps))) == list(range(1, NUM_IMAGES + 1))
    assert len(steps) == steps_per_epoch(NUM_IMAGES, CONFIG)


def test_every_epoch_has_its_own_order() -> None:
    assert image_ids(batches(epoch=0)) != image_ids(batches(epoch=1))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_no_batch(num_workers: int) -> None:
    assert_same(batches(epoch=3, num_workers=num_workers), batches(epoch=3))


@pytest.mark.parametrize("skip_steps", [1, 2, 3])
def test_an_epoch_goes_on_where_it_stopped(skip_steps: int) -> None:
    assert_same(batches(epoch=2, skip_steps=skip_steps), batches(epoch=2)[skip_steps:])


def test_loading_draws_nothing_from_the_random_state_of_the_run() -> None:
    before = torch.get_rng_state()

    batches(num_workers=1)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_sampler_knows_its_length() -> None:
    sampler = EpochSampler(11, batch_size=2, seed=0, epoch=0, skip=2)

    assert len(list(sampler)) == len(sampler) == 4
