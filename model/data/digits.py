"""The demo data set: handwritten digits over photographs, generated on the fly.

The 1797 digits (8x8) come from scikit-learn, the photographs from scikit-image's wheel; nothing is
downloaded. Training and validation share no digit and no photograph. Lines, ellipses, rectangles
and scribbles are drawn as distractors without a label.

    python -m model.data.digits OUT --split val     writes the split in COCO format
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import skimage
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from bundle.atomic import write_atomically
from bundle.manifest import ClassInfo
from model.arguments import at_least_one
from model.data.transforms import Sample, to_target

Split = Literal["train", "val"]

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = tuple(ClassInfo(id=label + 1, name=name) for label, name in enumerate(_NAMES))
BACKGROUND = len(CLASSES)  # the label of crops without a digit
NUM_CROP_CLASSES = BACKGROUND + 1

IMAGE_SIDE_PX = 128  # of validation images
# Every fourth training image has random sides, so that most batches have padding.
_OTHER_SIDES_PX = (96, 128, 160)
CROP_SIDE_PX = 40
NUM_VAL_IMAGES = 200
_VAL_SEED = 201004159  # validation is the same 200 images whatever the seed of a run
_PHOTOS: dict[Split, tuple[str, ...]] = {
    # The two motorcycle images show one scene, so they stay together.
    "train": ("astronaut.png", "camera.png", "cell.png", "chelsea.png", "coins.png", "grass.png",
              "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "motorcycle_right.png",
              "rocket.jpg"),
    "val": ("brick.png", "coffee.png", "gravel.png", "moon.png", "retina.jpg"),
}  # fmt: skip
_GLYPH_SIDE_PX = 80  # an 8x8 digit and a border of one, times eight
_HEIGHTS_PX = (16, 64)  # of a digit before rotation
_MIN_CONTRAST = 60.0  # grey levels between a digit and the mean of what it covers
_MAX_COVER = 0.1  # of the smaller of two digit boxes


@cache
def _photos(split: Split) -> tuple[np.ndarray, ...]:
    """The split's photographs, uint8 RGB, with a short side of at most 320."""
    folder = Path(skimage.__file__).parent / "data"
    photos = []
    for name in _PHOTOS[split]:
        photo = Image.open(folder / name).convert("RGB")
        scale = 320 / min(photo.size)
        if scale < 1:
            photo = photo.resize((int(photo.width * scale), int(photo.height * scale)))
        photos.append(np.asarray(photo))
    return tuple(photos)


@cache
def _glyphs(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Ink of the split's digits, (N, 80, 80) uint8, and labels (N,). Every fifth is validation."""
    from sklearn.datasets import load_digits  # takes two seconds, and most runs have other data

    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 == 4) == (split == "val")
    glyphs = []
    for image in digits.images[chosen]:
        ink = np.pad(image * (255 / image.max()), 1).astype(np.float32)
        large = cv2.resize(ink, (_GLYPH_SIDE_PX, _GLYPH_SIDE_PX), interpolation=cv2.INTER_CUBIC)
        glyphs.append(np.clip(large, 0, 255).astype(np.uint8))
    return np.stack(glyphs), digits.target[chosen].astype(np.int64)


@cache
def _noise_field() -> np.ndarray:
    """Unit Gaussian noise (256, 256, 3), from which every image takes a window."""
    return np.random.default_rng(0).standard_normal((256, 256, 3), dtype=np.float32)


def _background(rng: np.random.Generator, split: Split, side: int, min_window: int) -> np.ndarray:
    """A square window of a photograph, scaled to (side, side, 3) uint8, with varied lighting."""
    photos = _photos(split)
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[:2]
    window = int(rng.integers(min_window, min(height, width) + 1))
    top, left = rng.integers(height - window + 1), rng.integers(width - window + 1)
    patch = photo[top : top + window, left : left + window]
    interpolation = cv2.INTER_AREA if window > side else cv2.INTER_LINEAR
    patch = cv2.resize(patch, (side, side), interpolation=interpolation)
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    gain, offset = 0.6 + 0.6 * rng.random(), 60 * rng.random() - 30
    lit: np.ndarray = np.clip(patch * gain + offset, 0, 255)
    return lit.astype(np.uint8)


def _draw_distractor(rng: np.random.Generator, image: np.ndarray) -> None:
    """One line, ellipse, rectangle or scribble. Outlines stay thinner than the digits' strokes."""
    side = min(image.shape[:2])
    colour = tuple(int(value) for value in rng.integers(0, 256, 3))
    x, y = (int(value) for value in rng.integers(0, image.shape[1::-1]))
    w, h = (int(value) for value in rng.integers(side // 12, side // 2, 2))
    thickness = 1 if side < 64 else int(rng.integers(1, 3))
    filled = cv2.FILLED if rng.random() < 0.3 else thickness
    kind = rng.integers(4)
    if kind == 0:
        end = (x + int(rng.choice((-2, 2))) * w, y + int(rng.choice((-2, 2))) * h)
        cv2.line(image, (x, y), end, colour, thickness, cv2.LINE_AA)
    elif kind == 1:
        angle = float(180 * rng.random())
        cv2.ellipse(image, (x, y), (w // 2, h // 2), angle, 0, 360, colour, filled, cv2.LINE_AA)
    elif kind == 2:
        cv2.rectangle(image, (x, y), (x + w, y + h), colour, filled)
    else:
        steps = rng.integers(-side // 6, side // 6 + 1, (6, 2)).cumsum(axis=0)
        points = (steps + np.array([x, y])).astype(np.int32)
        cv2.polylines(image, [points], False, colour, thickness, cv2.LINE_AA)


def _render_digit(rng: np.random.Generator, glyph: np.ndarray, height_px: float) -> np.ndarray:
    """Opacity (h, w) float32 in 0..1 of a digit, rotated and slanted, cut to its ink."""
    patch_side = int(1.5 * height_px) + 2
    scale = height_px / 64
    angle = np.deg2rad(30 * rng.random() - 15)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    aspect, slant = 0.85 + 0.3 * rng.random(), 0.4 * rng.random() - 0.2
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[aspect, slant], [0.0, 1.0]])
    shift = patch_side / 2 - linear @ np.full(2, _GLYPH_SIDE_PX / 2)
    ink = cv2.warpAffine(glyph, np.column_stack([linear, shift]), (patch_side, patch_side))
    low = 85 + 55 * rng.random()  # ink at which a stroke begins: its width varies
    opacity: np.ndarray = np.clip((ink - np.float32(low)) / np.float32(60), 0, 1)
    x, y, w, h = cv2.boundingRect((opacity > 0.5).astype(np.uint8))
    return opacity[y : y + h, x : x + w]


def _readable_colour(rng: np.random.Generator, covered: np.ndarray) -> np.ndarray:
    """A colour (3,) float32 that stands out in brightness from the pixels (h, w, 3) it covers."""
    to_grey = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    mean, deviation = (float(v[0, 0]) for v in cv2.meanStdDev(covered @ to_grey))
    contrast = min(_MIN_CONTRAST + deviation, 105.0)
    for _ in range(20):
        colour: np.ndarray = rng.integers(0, 256, 3).astype(np.float32)
        if abs(float(colour @ to_grey) - mean) >= contrast:
            return colour
    return np.full(3, 255 if mean < 128 else 0, dtype=np.float32)


def _paint(
    rng: np.random.Generator, image: np.ndarray, opacity: np.ndarray, x: int, y: int
) -> None:
    """Blend a digit into the image with its upper left corner at (x, y), in place."""
    height, width = opacity.shape
    covered = image[y : y + height, x : x + width]
    colour = _readable_colour(rng, covered)
    alpha = (opacity * np.float32(0.85 + 0.15 * rng.random()))[..., None]
    covered[...] = covered + alpha * (colour - covered) + 0.5


def _degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Slight blur (one image in five) and noise of up to 8 grey levels."""
    height, width = image.shape[:2]
    if rng.random() < 0.2:
        image = cv2.GaussianBlur(image, (3, 3), 0.4 + 0.4 * rng.random())
    top, left = rng.integers(0, (257 - height, 257 - width))
    noise = _noise_field()[top : top + height, left : left + width]
    noisy: np.ndarray = image + noise * np.float32(8 * rng.random())
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


def _place(
    rng: np.random.Generator,
    image: np.ndarray,
    size: tuple[int, ...],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    """A place (x1, y1, x2, y2) for a digit (h, w) that hardly covers others; None if full."""
    height, width = size
    for _ in range(10):
        x = int(rng.integers(image.shape[1] - width + 1))
        y = int(rng.integers(image.shape[0] - height + 1))
        for x1, y1, x2, y2 in taken:
            shared = max(0, min(x + width, x2) - max(x, x1)) * max(
                0, min(y + height, y2) - max(y, y1)
            )
            if shared > _MAX_COVER * min(width * height, (x2 - x1) * (y2 - y1)):
                break
        else:
            return x, y, x + width, y + height
    return None


def make_sample(rng: np.random.Generator, split: Split) -> Sample:
    """One image with none to six digits; boxes are tight around their ink.

    Validation images are (128, 128, 3), and so are three in four training images; each side of the
    fourth is 96, 128 or 160.
    """
    height = width = IMAGE_SIDE_PX
    if split == "train" and rng.random() < 0.25:
        height, width = (int(side) for side in rng.choice(_OTHER_SIDES_PX, 2))
    square = _background(rng, split, max(height, width), min_window=96)
    image = np.ascontiguousarray(square[:height, :width])
    for _ in range(rng.integers(0, 5)):
        _draw_distractor(rng, image)
    glyphs, glyph_labels = _glyphs(split)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    num_digits = 0 if rng.random() < 0.05 else rng.integers(1, 7)
    low, high = _HEIGHTS_PX
    for _ in range(num_digits):
        index = int(rng.integers(len(glyphs)))
        opacity = _render_digit(rng, glyphs[index], low * (high / low) ** rng.random())
        box = _place(rng, image, opacity.shape, boxes)
        if box is not None:
            _paint(rng, image, opacity, box[0], box[1])
            boxes.append(box)
            labels.append(int(glyph_labels[index]))
    return Sample(
        _degrade(rng, image),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
    )


def crop_batch(
    rng: np.random.Generator, num_crops: int, *, split: Split = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Crops for pre-training the backbone as a classifier.

    Returns:
        crops (n, 40, 40, 3) uint8 RGB, one whole digit in each, roughly centred; labels (n,)
        int64: 0..9, or 10 (`BACKGROUND`) for the one crop in eleven that has no digit.
    """
    glyphs, glyph_labels = _glyphs(split)
    crops = np.empty((num_crops, CROP_SIDE_PX, CROP_SIDE_PX, 3), dtype=np.uint8)
    labels = np.full(num_crops, BACKGROUND, dtype=np.int64)
    for i in range(num_crops):
        crop = _background(rng, split, CROP_SIDE_PX, min_window=32)
        for _ in range(rng.integers(0, 3)):
            _draw_distractor(rng, crop)
        if rng.random() >= 1 / NUM_CROP_CLASSES:
            index = int(rng.integers(len(glyphs)))
            opacity = _render_digit(rng, glyphs[index], 16 + 16 * rng.random())
            free = np.array([CROP_SIDE_PX - opacity.shape[1], CROP_SIDE_PX - opacity.shape[0]])
            x, y = (free * (0.25 + 0.5 * rng.random(2))).astype(int)
            _paint(rng, crop, opacity, int(x), int(y))
            labels[i] = glyph_labels[index]
        crops[i] = _degrade(rng, crop)
    return crops, labels


class DigitsDataset(Dataset[tuple[np.ndarray, dict[str, Any]]]):
    """Digits over photographs, with the interface of `CocoDataset`.

    Training images depend only on (seed, epoch, index), so they never repeat and a resumed run
    sees the same ones. The validation images are the same for every seed and epoch.
    """

    classes = CLASSES

    def __init__(
        self,
        split: Split,
        *,
        seed: int = 0,
        num_images: int = NUM_VAL_IMAGES,
    ) -> None:
        self.split = split
        self.seed = seed
        self.num_images = num_images
        self.epoch = 0
        self._truth: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the training images."""
        self.epoch = epoch
        self._truth = None

    def __len__(self) -> int:
        return self.num_images

    @property
    def is_portrait(self) -> np.ndarray:
        """By index, whether an image counts as portrait for batching: none does."""
        return np.zeros(self.num_images, np.bool_)

    @property
    def sizes(self) -> np.ndarray:
        """(1, 2), the largest height and width of an image, in pixels."""
        return np.full((1, 2), max(_OTHER_SIDES_PX))

    def _rng(self, index: int) -> np.random.Generator:
        if not 0 <= index < self.num_images:
            raise IndexError(f"index {index} of a data set of {self.num_images} images")
        key = [_VAL_SEED, index] if self.split == "val" else [self.seed, self.epoch, index]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Image (h, w, 3) uint8 RGB and its target."""
        sample = make_sample(self._rng(index), self.split)
        return sample.image, to_target(sample, self.image_id(index))

    def image_id(self, index: int) -> int:
        """The image's id in `ground_truth`."""
        return index + 1

    def read_image(self, index: int) -> np.ndarray:
        """The image (h, w, 3) uint8 RGB."""
        return make_sample(self._rng(index), self.split).image

    def ground_truth(self) -> dict[str, Any]:
        """Images, annotations and categories in COCO's format; a new copy, which may be changed."""
        if self._truth is None:  # takes as long as making the images
            self._truth = self._find_truth()
        return deepcopy(self._truth)

    def _find_truth(self) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(self.num_images):
            sample = make_sample(self._rng(index), self.split)
            image_id = self.image_id(index)
            images.append({
                "id": image_id, "file_name": f"{self.split}_{index:04d}.png",
                "height": sample.image.shape[0], "width": sample.image.shape[1],
            })  # fmt: skip
            for box, label in zip(sample.boxes_xyxy_px.tolist(), sample.labels, strict=True):
                x1, y1, x2, y2 = box
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image_id,
                    "category_id": CLASSES[label].id, "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
                })  # fmt: skip
        categories = [{"id": info.id, "name": info.name} for info in CLASSES]
        return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(dataset: DigitsDataset, out_dir: Path) -> None:
    """Write images to OUT/images/SPLIT (PNG) and OUT/annotations/SPLIT.json."""
    image_dir = out_dir / "images" / dataset.split
    annotation_file = out_dir / "annotations" / f"{dataset.split}.json"
    image_dir.mkdir(parents=True, exist_ok=True)
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    ground_truth = dataset.ground_truth()
    for index, entry in enumerate(tqdm(ground_truth["images"], desc="writing digits")):
        Image.fromarray(dataset.read_image(index)).save(image_dir / entry["file_name"])
    write_atomically(annotation_file, json.dumps(ground_truth).encode())


def main() -> None:
    """Write one split to disk in COCO format."""
    parser = argparse.ArgumentParser(prog="python -m model.data.digits", description=main.__doc__)
    parser.add_argument("out", type=Path, help="directory to write to")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--num-images", type=at_least_one, default=NUM_VAL_IMAGES)
    parser.add_argument("--seed", type=int, default=0, help="of the training split")
    args = parser.parse_args()
    dataset = DigitsDataset(args.split, seed=args.seed, num_images=args.num_images)
    write_coco(dataset, args.out)


if __name__ == "__main__":
    main()
