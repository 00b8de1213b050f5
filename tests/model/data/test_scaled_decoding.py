"""Large JPEGs decoded at a fraction of their size: for training alone, with boxes that fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.config import AugmentConfig
from model.configs import tiny
from model.data.loading import RunData, open_data
from model.data.transforms import least_side

BOX = (201, 99, 401, 300)  # x, y, width, height, of a white rectangle on black
AUGMENT = AugmentConfig(
    short_sides=(64, 80), long_side=160, crop_short_sides=(90,), crop_min=48, crop_max=70,
    scaled_decoding=True,
)  # fmt: skip


def open_rectangle(
    directory: Path,
    augment: AugmentConfig,
    *,
    size: tuple[int, int] = (803, 601),
    orientation: int = 1,
) -> RunData:
    """The rectangle as the only image of each split, stored upright or turned."""
    x, y, width, height = BOX
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y : y + height, x : x + width] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(pixels) if orientation == 6 else pixels  # shown turned to the right
    for image_id, split in enumerate(("train", "val"), start=1):
        folder = directory / "images" / split
        folder.mkdir(parents=True)
        Image.fromarray(stored).save(folder / "1.jpg", quality=90 + image_id, exif=exif)
        content = {
            "images": [{"id": 1, "file_name": "1.jpg", "width": size[0], "height": size[1]}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": BOX, "category_id": 1}],
            "categories": [{"id": 1, "name": "rectangle"}],
        }
        (directory / f"{split}.json").write_text(json.dumps(content))
    return open_data(replace(tiny(), augment=augment), directory)


@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_stay_on_their_objects(tmp_path: Path, orientation: int) -> None:
    dataset = open_rectangle(tmp_path, AUGMENT, orientation=orientation).train

    assert dataset.read_image(0).shape == (151, 201, 3)  # a quarter, rounded up
    for epoch in range(20):  # flipped, cropped and resized
        dataset.set_epoch(epoch)
        image, target = dataset[0]
        [(x, y, w, h)] = target["boxes"].numpy() * np.tile(image.shape[1::-1], 2)
        is_white = image[..., 0] > 127
        ((left, right), (top, bottom)) = (
            (found.argmax(), len(found) - found[::-1].argmax())
            for found in (is_white.any(axis=0), is_white.any(axis=1))
        )
        found = [left, top, right, bottom]
        assert found == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=1.0)


def test_the_same_crops_are_drawn_as_from_the_whole_image(tmp_path: Path) -> None:
    scaled, whole = (
        open_rectangle(tmp_path / name, augment, size=(800, 600)).train
        for name, augment in (
            ("scaled", AUGMENT),
            ("whole", replace(AUGMENT, scaled_decoding=False)),
        )
    )

    assert scaled.read_image(0).shape == (150, 200, 3)
    assert whole.read_image(0).shape == (600, 800, 3)
    for epoch in range(20):
        scaled.set_epoch(epoch)
        whole.set_epoch(epoch)
        assert scaled[0][0].shape == whole[0][0].shape
        box, expected = scaled[0][1]["boxes"], whole[0][1]["boxes"]
        assert box.numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_validation_images_are_decoded_in_full(tmp_path: Path) -> None:
    data = open_rectangle(tmp_path, AUGMENT)

    assert data.val.read_image(0).shape == (601, 803, 3)
    assert data.val[0][0].shape == (601, 803, 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 90),
        ({"crop_probability": 0.0}, 80),
        ({"scale_jitter": (0.5, 1.21)}, 109),
        ({"scale_jitter": (0.5, 0.7)}, 90),
        ({"scaled_decoding": False}, None),
    ],
)
def test_no_size_of_the_augmentation_needs_more_pixels(changes: dict, expected: int | None) -> None:
    assert least_side(replace(AUGMENT, **changes)) == expected


def test_pasted_objects_need_whole_images() -> None:
    with pytest.raises(ValueError, match="scaled_decoding needs paste_probability=0"):
        replace(AUGMENT, paste_probability=0.1)
