"""Behaviour of the demo data set: reproducible, disjoint, labels true to the pixels."""

import json

import numpy as np
import pytest
from PIL import Image

from model.data import digits
from model.data.digits import BACKGROUND, CLASSES, DigitsDataset, crop_batch, write_coco


def test_the_same_seed_epoch_and_index_give_the_same_image():
    one, other = (DigitsDataset("train", seed=3, num_images=8) for _ in range(2))
    one.set_epoch(2)
    other.set_epoch(2)

    image, target = one[5]
    _ = other[1]  # what was read before does not matter
    same_image, same_target = other[5]

    np.testing.assert_array_equal(image, same_image)
    assert target["boxes"].equal(same_target["boxes"])
    assert target["labels"].equal(same_target["labels"])


@pytest.mark.parametrize(("seed", "epoch"), [(3, 1), (4, 0)])
def test_training_images_change_with_epoch_and_seed(seed, epoch):
    dataset = DigitsDataset("train", seed=3, num_images=8)
    other = DigitsDataset("train", seed=seed, num_images=8)
    other.set_epoch(epoch)

    assert not np.array_equal(dataset[0][0], other[0][0])


def test_validation_is_fixed_whatever_seed_and_epoch():
    dataset, other = DigitsDataset("val", seed=1), DigitsDataset("val", seed=2)
    other.set_epoch(9)

    assert len(dataset) == 200
    np.testing.assert_array_equal(dataset[17][0], other[17][0])


def test_train_and_validation_share_no_digit_and_no_photograph():
    train_glyphs, _ = digits._glyphs("train")
    val_glyphs, _ = digits._glyphs("val")

    assert len(train_glyphs) + len(val_glyphs) == 1797
    assert not {g.tobytes() for g in train_glyphs} & {g.tobytes() for g in val_glyphs}
    assert not set(digits._PHOTOS["train"]) & set(digits._PHOTOS["val"])


def test_boxes_are_inside_the_image_and_labels_are_classes():
    dataset = DigitsDataset("train", num_images=100)
    samples = [dataset[i] for i in range(100)]

    for image, target in samples:
        corners = np.concatenate([
            target["boxes"][:, :2] - target["boxes"][:, 2:] / 2,
            target["boxes"][:, :2] + target["boxes"][:, 2:] / 2,
        ])  # fmt: skip
        assert image.shape[2] == 3
        assert image.dtype == np.uint8
        assert ((corners > -1e-6) & (corners < 1 + 1e-6)).all()
        assert ((target["labels"] >= 0) & (target["labels"] < len(CLASSES))).all()
    counts = [len(target["labels"]) for _, target in samples]
    assert min(counts) == 0
    assert max(counts) == 6


def test_training_images_differ_in_size_and_validation_images_do_not():
    training = DigitsDataset("train", num_images=100)
    validation = DigitsDataset("val")

    sides = np.array([training[i][0].shape[:2] for i in range(100)])
    sizes = {validation[i][0].shape for i in range(0, 200, 10)}

    assert set(sides.ravel()) == {96, 128, 160}
    assert sizes == {(128, 128, 3)}


def test_a_digit_stands_out_from_what_it_covers():
    rng = np.random.default_rng(0)
    greys = np.arange(0, 256, 15)

    colours = [digits._readable_colour(rng, np.full((9, 9, 3), grey, np.uint8)) for grey in greys]

    contrasts = np.abs(np.stack(colours) @ np.array([0.299, 0.587, 0.114]) - greys)
    assert contrasts.min() >= 59.9


def test_an_index_past_the_end_is_refused():
    with pytest.raises(IndexError, match="200 images"):
        DigitsDataset("val")[200]


def test_crops_have_a_label_each_and_some_are_background():
    crops, labels = crop_batch(np.random.default_rng(0), 200)

    assert crops.shape == (200, 40, 40, 3)
    assert crops.dtype == np.uint8
    assert labels.dtype == np.int64
    assert set(labels.tolist()) == set(range(BACKGROUND + 1))


def test_a_written_split_holds_the_same_images_and_boxes(tmp_path):
    dataset = DigitsDataset("val", num_images=3)

    write_coco(dataset, tmp_path)

    ground_truth = json.loads((tmp_path / "annotations" / "val.json").read_text())
    assert ground_truth == dataset.ground_truth()
    assert [c["id"] for c in ground_truth["categories"]] == list(range(1, 11))
    file_name = ground_truth["images"][2]["file_name"]
    written = np.asarray(Image.open(tmp_path / "images" / "val" / file_name))
    np.testing.assert_array_equal(written, dataset.read_image(2))
    boxes = [a["bbox"] for a in ground_truth["annotations"] if a["image_id"] == 3]
    centres = dataset[2][1]["boxes"][:, :2].numpy() * 128
    np.testing.assert_allclose([[x + w / 2, y + h / 2] for x, y, w, h in boxes], centres, atol=1e-4)
