"""Images that look alike in both splits are found, however they were saved, and no others."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.manifest import ClassInfo
from model.data.annotations import Annotations, ImageEntry
from model.data.look_alikes import compare_splits
from model.data.split import Split, open_split

PHOTOS = sorted(Path("tests/data/coco_fixture12/images").rglob("*.jpg"))


def split_of(folder: Path, names: list[str]) -> Split:
    images = tuple(ImageEntry(number, name, None) for number, name in enumerate(names))
    classes = (ClassInfo(id=1, name="cat"),)
    annotations = Annotations(folder / "a.json", images, (), classes, (), "")
    return open_split(annotations, folder, data_dir=folder)


def photos(start: int, end: int) -> Split:
    return split_of(PHOTOS[0].parent, [path.name for path in PHOTOS[start:end]])


def saved(folder: Path, images: list[Image.Image], suffix: str = "png", **options) -> Split:
    for number, image in enumerate(images):
        image.save(folder / f"{number}.{suffix}", **options)
    return split_of(folder, [f"{number}.{suffix}" for number in range(len(images))])


def resized(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((round(image.width * scale), round(image.height * scale)))


def turned(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_90)  # shown upright by orientation 6


def sixteen_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(resized(image, 0.5).convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("change", "suffix", "options"),
    [
        (lambda image: image, "jpg", {"quality": 30}),
        (lambda image: resized(image, 0.25), "jpg", {"quality": 50}),
        (lambda image: resized(image, 1.5), "jpg", {"quality": 80}),
        (lambda image: resized(image, 0.5), "png", {}),
        (lambda image: resized(image, 0.33), "webp", {"quality": 75}),
        (lambda image: image.convert("L"), "jpg", {"quality": 80}),
        (sixteen_bit, "png", {}),
        (turned, "jpg", {"quality": 80, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"
                         b"\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
    ],
)  # fmt: skip
def test_every_image_that_was_saved_again_is_found_with_its_original(
    change, suffix, options, tmp_path
):
    copies = saved(tmp_path, [change(Image.open(path)) for path in PHOTOS[:6]], suffix, **options)

    found = compare_splits(photos(0, 12), copies)

    assert dict(found.pairs) == {
        tmp_path / f"{number}.{suffix}": path for number, path in enumerate(PHOTOS[:6])
    }
    assert "training images: 6, such as" in str(found)


def test_different_photographs_do_not_look_alike():
    found = compare_splits(photos(0, 6), photos(6, 12))

    assert found.pairs == ()
    assert (found.num_compared, found.num_images) == (12, 12)
    assert str(found) == "apart from equal files, no validation image looks like a training image"


def test_plain_images_and_single_pixels_do_not_look_alike(tmp_path):
    train = [Image.new("RGB", size, "white") for size in ((40, 40), (1, 1), (1, 500))]
    val = [Image.new("RGB", size, "black") for size in ((40, 40), (1, 1), (500, 1))]
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()

    found = compare_splits(saved(tmp_path / "train", train), saved(tmp_path / "val", val))

    assert found.pairs == ()


def test_equal_files_are_left_to_the_check_of_files():
    assert compare_splits(photos(0, 6), photos(0, 6)).pairs == ()


def test_a_damaged_image_hides_no_other(tmp_path):
    copies = saved(tmp_path, [resized(Image.open(path), 0.5) for path in PHOTOS[:2]])
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:400])

    found = compare_splits(photos(0, 6), copies)

    assert found.pairs == ((tmp_path / "1.png", PHOTOS[1]),)
    assert str(found).endswith("; images that cannot be decoded: 1, see the check with --decode")


def test_a_file_that_is_listed_twice_is_compared_once():
    name = PHOTOS[0].name

    found = compare_splits(photos(6, 12), split_of(PHOTOS[0].parent, [name, name]))

    assert (found.num_compared, found.num_images) == (7, 7)


@pytest.mark.parametrize(("train", "val"), [((0, 0), (0, 3)), ((0, 3), (0, 0)), ((0, 0), (0, 0))])
def test_an_empty_split_looks_like_nothing(train, val):
    assert compare_splits(photos(*train), photos(*val)).pairs == ()


def test_images_that_there_is_no_time_for_are_counted(tmp_path):
    copies = saved(tmp_path, [resized(Image.open(path), 0.5) for path in PHOTOS])
    clock = count().__next__  # a second passes at every look

    found = compare_splits(photos(0, 12), copies, seconds=2, clock=clock)

    assert (found.num_compared, found.num_images) == (16, 24)
    assert 0 < len(found.pairs) < 12
    assert "among the 16 of 24 images that there was time to compare" in str(found)
