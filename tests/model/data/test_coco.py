"""Behaviour of a COCO data set: labels, boxes, reproducible augmentation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.preprocess import Preprocess
from model.config import AugmentConfig
from model.data.coco import CocoDataset
from model.data.data_set import open_data_set
from model.data.transforms import make_transform
from tests.model.data.reading import read_split

FIXTURE = Path("tests/data/coco_fixture12")
AUGMENT = AugmentConfig(
    short_sides=(64, 80), long_side=160, crop_short_sides=(90,), crop_min=48, crop_max=70
)


@pytest.fixture
def write_data(tmp_path):
    """A function that writes a data set of blank images from boxes [x, y, w, h, category_id]."""

    def write(sizes, boxes_of_image, categories=((7, "cat"), (3, "dog")), **extra):
        (tmp_path / "images").mkdir(exist_ok=True)
        images: list[dict] = []
        annotations: list[dict] = []
        for number, ((height, width), boxes) in enumerate(zip(sizes, boxes_of_image, strict=True)):
            file_name = f"{number}.png"
            Image.new("RGB", (width, height)).save(tmp_path / "images" / file_name)
            images.append(
                {"id": 100 + number, "file_name": file_name, "height": height, "width": width}
            )
            for *box, category_id in boxes:
                annotations.append({
                    "id": len(annotations) + 1, "image_id": 100 + number, "bbox": box,
                    "category_id": category_id, **extra,
                })  # fmt: skip
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in categories],
        }
        (tmp_path / "train.json").write_text(json.dumps(content))
        return tmp_path / "train.json", tmp_path / "images"

    return write


def test_labels_follow_the_order_of_the_files_categories(write_data):
    files = write_data([(50, 50)], [[(5, 5, 10, 10, 3), (5, 5, 10, 20, 7)]])

    dataset = CocoDataset(read_split(*files))

    assert [(c.id, c.name) for c in dataset.classes] == [(7, "cat"), (3, "dog")]
    assert dataset[0][1]["labels"].tolist() == [1, 0]


def test_boxes_are_normalised_centres_and_sizes(write_data):
    dataset = CocoDataset(read_split(*write_data([(50, 100)], [[(10, 10, 20, 30, 7)]])))

    image, target = dataset[0]

    assert image.shape == (50, 100, 3)
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.2, 0.5, 0.2, 0.6]]))
    assert target["image_id"] == 100


def test_crowds_are_not_targets_but_stay_in_the_ground_truth(write_data):
    dataset = CocoDataset(read_split(*write_data([(50, 50)], [[(5, 5, 10, 10, 7)]], iscrowd=1)))

    assert dataset[0][1]["boxes"].shape == (0, 4)
    assert len(dataset.ground_truth()["annotations"]) == 1


@pytest.mark.parametrize(
    "box", [(5, 5, 0, 9), (5, 5, 9, 0.5), (50, 5, 9, 9), (5, -9, 9, 9), (9, 9, -4, 5)]
)
def test_boxes_without_a_part_in_the_image_are_dropped(write_data, box):
    dataset = CocoDataset(
        read_split(*write_data([(50, 50)], [[(1, 1, 5, 5, 3), (*box, 7), (2, 2, 5, 5, 3)]]))
    )

    assert dataset[0][1]["labels"].tolist() == [1, 1]


def test_a_box_that_sticks_out_is_clipped(write_data):
    dataset = CocoDataset(read_split(*write_data([(50, 50)], [[(-10, 40, 20, 20, 7)]])))

    torch.testing.assert_close(dataset[0][1]["boxes"], torch.tensor([[0.1, 0.9, 0.2, 0.2]]))


def test_boxes_belong_to_their_image(write_data):
    boxes = [[(1, 1, 9, 9, 3)], [], [(2, 2, 4, 4, 7), (3, 3, 5, 5, 7)], []]
    dataset = CocoDataset(read_split(*write_data([(40, 40)] * 4, boxes)))

    counts = [len(dataset[i][1]["labels"]) for i in range(4)]

    assert counts == [1, 0, 2, 0]
    assert dataset[2][1]["labels"].tolist() == [0, 0]


def test_only_training_leaves_out_tiny_images_and_both_keep_images_without_boxes(write_data):
    sizes = [(31, 200), (32, 32)]
    files = write_data(sizes, [[(1, 1, 9, 9, 3)], []])

    training = CocoDataset(read_split(*files), transform=make_transform(AUGMENT, Preprocess()))
    evaluation = CocoDataset(read_split(*files))

    assert [training.image_id(i) for i in range(len(training))] == [101]
    assert [evaluation.image_id(i) for i in range(len(evaluation))] == [100, 101]
    assert training[0][1]["boxes"].shape == (0, 4)


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    transform = make_transform(AUGMENT, Preprocess())
    one, other, third = (
        CocoDataset(open_data_set(FIXTURE).open("train"), transform=transform, seed=seed)
        for seed in (1, 1, 2)
    )
    one.set_epoch(3)
    other.set_epoch(3)
    third.set_epoch(3)
    _ = other[0]

    np.testing.assert_array_equal(one[5][0], other[5][0])
    assert not np.array_equal(one[5][0], third[5][0])
    other.set_epoch(4)
    assert not np.array_equal(one[5][0], other[5][0])


def test_real_images_and_their_boxes_are_read():
    dataset = CocoDataset(open_data_set(FIXTURE).open("val"))

    targets = [dataset[i][1] for i in range(len(dataset))]

    assert len(dataset) == 12
    assert len(dataset.classes) == 80
    assert sum(len(t["labels"]) for t in targets) == 134 - 2
    assert min(len(t["labels"]) for t in targets) == 0


def test_a_thousand_classes_and_one_class_are_alike(write_data):
    many = tuple((10 * i, f"class {i}") for i in range(1, 1001))

    dataset = CocoDataset(read_split(*write_data([(40, 40)], [[(1, 1, 9, 9, 10_000)]], many)))
    single = CocoDataset(read_split(*write_data([(40, 40)], [[(1, 1, 9, 9, 5)]], ((5, "cell"),))))

    assert dataset[0][1]["labels"].tolist() == [999]
    assert single[0][1]["labels"].tolist() == [0]


@pytest.mark.parametrize("image_format", ["BMP", "TIFF"])
def test_formats_that_are_not_served_are_trained_and_evaluated_on(write_data, image_format):
    annotation_file, image_dir = write_data([(40, 50)], [[(5, 5, 10, 10, 7)]])
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(image_dir / "0.png", image_format)

    dataset = CocoDataset(read_split(annotation_file, image_dir))

    np.testing.assert_array_equal(dataset[0][0], pixels)
    np.testing.assert_array_equal(dataset.read_image(0), pixels)


def test_a_damaged_image_is_named(write_data):
    annotation_file, image_dir = write_data([(40, 40)], [[]])
    dataset = CocoDataset(read_split(annotation_file, image_dir))
    content = (image_dir / "0.png").read_bytes()
    (image_dir / "0.png").write_bytes(content[: len(content) // 2])

    with pytest.raises(ValueError, match=r"image 100, .*0\.png"):
        dataset.read_image(0)


def test_what_changes_a_sample_changes_it_for_no_other_epoch(write_data):
    files = write_data([(50, 50)], [[(5, 5, 10, 10, 3)]])
    seen: list[tuple[list, list]] = []

    def ruin(sample, rng):
        seen.append((sample.boxes_xyxy_px.tolist(), sample.labels.tolist()))
        sample.boxes_xyxy_px[:], sample.labels[:] = 0, 0
        return sample

    dataset = CocoDataset(read_split(*files), transform=ruin)
    _ = dataset[0], dataset[0]

    assert seen[0] == seen[1]
    assert seen[0][1] == [1]
