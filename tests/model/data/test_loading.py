"""Batches of an epoch: the same for any number of workers, and after an interruption."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.configs import demo, tiny
from model.data.coco import CocoDataset
from model.data.digits import DigitsDataset
from model.data.loading import (
    batch_by_shape,
    epoch_batches,
    parts_per_batch,
    share_of_step,
    steps_per_epoch,
)
from tests.model.data.reading import read_split

CONFIG = replace(demo(), batch_size=2, accumulation_steps=2, num_workers=0)
NUM_IMAGES = 11  # three steps: 4, 4 and 3 images


def write_blank(directory: Path, sizes: list[tuple[int, int]]) -> tuple[Path, Path]:
    """A data set of blank images of these sizes, (height, width), with ids from 1 on."""
    images = [
        {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        for number, (height, width) in enumerate(sizes, start=1)
    ]
    for image, (height, width) in zip(images, sizes, strict=True):
        Image.new("RGB", (width, height)).save(directory / str(image["file_name"]))
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (directory / "train.json").write_text(json.dumps(content))
    return directory / "train.json", directory


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


def test_every_epoch_has_its_own_pixels() -> None:
    first, second = (
        {t["image_id"]: int(image.sum()) for (images, _, targets), *_ in batches(epoch=epoch)
         for image, t in zip(images, targets, strict=True)}
        for epoch in (0, 1)
    )  # fmt: skip

    assert all(first[image_id] != second[image_id] for image_id in first.keys() & second.keys())


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_no_batch(num_workers: int) -> None:
    assert_same(batches(epoch=3, num_workers=num_workers), batches(epoch=3))


@pytest.mark.parametrize("skip_steps", [1, 2, 3])
def test_an_epoch_resumes_where_it_stopped(skip_steps: int) -> None:
    assert_same(batches(epoch=2, skip_steps=skip_steps), batches(epoch=2)[skip_steps:])


def test_loading_draws_nothing_from_the_random_state_of_the_run() -> None:
    before = torch.get_rng_state()

    batches(num_workers=1)

    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_similar_shape_share_a_batch_and_the_rest_comes_last() -> None:
    is_portrait = np.array([True, False, False, True, True, False, True, False, False, True])

    batches = batch_by_shape([9, 0, 1, 2, 3, 5, 4, 7, 6, 8], is_portrait, batch_size=3)

    assert batches == [[9, 0, 3], [1, 2, 5], [4, 6, 7], [8]]


@pytest.mark.parametrize(("num_images", "batch_size"), [(1, 1), (5, 2), (12, 4), (13, 8), (0, 3)])
def test_every_image_is_in_one_batch_and_only_the_last_is_smaller(num_images, batch_size) -> None:
    is_portrait = np.random.default_rng(num_images).random(num_images) < 0.3
    order = list(np.random.default_rng(1).permutation(num_images))

    batches = batch_by_shape(order, is_portrait, batch_size=batch_size)

    assert sorted(chain(*batches)) == list(range(num_images))
    assert len(batches) == -(-num_images // batch_size)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


def test_batches_of_a_data_set_follow_the_shapes_of_its_images(tmp_path: Path) -> None:
    config = replace(tiny(), batch_size=2, augment=None)
    sizes = [(40, 60), (60, 40)] * 4
    dataset = CocoDataset(read_split(*write_blank(tmp_path, sizes)), transform=lambda s, _: s)

    steps = list(epoch_batches(dataset, config, epoch=0))

    assert all(mask.sum() == 0 for step in steps for _, mask, _ in step)
    assert sorted(chain(*image_ids(steps))) == list(range(1, 9))


# batch size, accumulation steps, processes; whether batch norm is trained; parts of a batch
@pytest.mark.parametrize(
    ("batch", "accumulated", "processes", "trained", "parts"),
    [
        (8, 1, 1, True, 1),
        (8, 1, 2, False, 2),
        (2, 16, 8, False, 1),  # whole batches, two for each process
        (2, 16, 32, False, 2),
        (4, 3, 2, False, 2),
        (8, 4, 2, True, 2),  # a batch is where trained batch norm gets its statistics
    ],
)
def test_batches_are_cut_only_if_there_are_too_few(
    batch: int, accumulated: int, processes: int, trained: bool, parts: int
) -> None:
    model = replace(tiny().model, train_batch_norm=trained)
    config = replace(tiny(), model=model, batch_size=batch, accumulation_steps=accumulated)

    assert parts_per_batch(config, processes) == parts


def test_a_step_with_fewer_images_than_processes_is_refused() -> None:
    config = replace(tiny(), batch_size=2, accumulation_steps=1)

    with pytest.raises(
        ValueError, match=r"some of 4 processes without images: raise batch_size to 4"
    ):
        parts_per_batch(config, 4)


def test_processes_share_a_step_evenly() -> None:
    step = [[1, 2, 3, 4, 5], [6]]

    whole = share_of_step(step, num_parts=1, num_processes=2)
    cut = share_of_step(step, num_parts=2, num_processes=2)
    last = share_of_step(step[1:], num_parts=1, num_processes=2)

    assert whole == [[[1, 2, 3, 4, 5]], [[6]]]
    assert cut == [[[1, 2, 3], [6]], [[4, 5], []]]
    assert last == [[[6]], [[]]]
