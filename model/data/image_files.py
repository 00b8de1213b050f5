"""Finds the image files of a data set and reads their headers, before training starts."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bundle.preprocess import DATASET_FORMATS, ImageHeader, decode_image, read_header
from model.data.annotations import ImageEntry
from model.data.faults import Fault

NUM_READERS = 8  # threads that wait for files
MIN_TRAINING_SIDE_PX = 32  # smaller images are not trained on, as published


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file; files with the same `digest` have the same content."""

    path: Path
    header: ImageHeader
    digest: bytes


def read_pixels(path: Path) -> np.ndarray:
    """Pixels (h, w, 3) uint8 RGB as displayed, of any format allowed in data sets.

    Raises:
        ValueError: the file is missing or damaged; names it.
    """
    try:
        return decode_image(path.read_bytes(), formats=DATASET_FORMATS)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_image_files(
    images: tuple[ImageEntry, ...], image_dir: Path, *, decode: bool
) -> Iterator[tuple[ImageEntry, ImageFile | Fault]]:
    """The file of every image, or what is wrong with it, in the order of `images`.

    Args:
        decode: decode every image; otherwise only those that seem truncated.
    """
    read = partial(_read_image_file, image_dir=image_dir, decode=decode)
    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = pool.map(read, images)
        bar = tqdm(found, total=len(images), desc="checking images", unit=" images", leave=False)
        yield from zip(images, bar, strict=True)


def _read_image_file(image: ImageEntry, *, image_dir: Path, decode: bool) -> ImageFile | Fault:
    try:
        path = find_image(image.file_name, image_dir)
    except OSError as error:
        return Fault("missing-file", image.id, None, str(error))
    try:
        data = path.read_bytes()
        header = read_header(data, DATASET_FORMATS)
        if decode or not _has_its_end(data):
            decode_image(data, formats=DATASET_FORMATS)
    except (OSError, ValueError) as error:
        return Fault("unreadable-image", image.id, None, f"{path}: {error}")
    return ImageFile(path, header, hashlib.blake2b(data, digest_size=16).digest())


def _has_its_end(data: bytes) -> bool:
    """Whether the file has its format's end marker; False if the format has none."""
    if data.startswith(b"\xff\xd8"):
        return data.endswith(b"\xff\xd9")
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-64:]
    if data.startswith(b"RIFF"):
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


def size_fault(image: ImageEntry, file: ImageFile) -> Fault | None:
    """What is wrong with an image's size, or with the size in the annotations."""
    header, shown_size = file.header, _shown(file.header.size)
    if image.size is not None and image.size != header.size:
        message = f"{file.path} is {shown_size} pixels, the annotations say {_shown(image.size)}"
        if image.size == header.stored_size:
            message = (
                f"{file.path} is {shown_size} pixels as displayed, by its EXIF orientation "
                f"{header.orientation}, and {_shown(image.size)} as stored, which is what the "
                "annotations say: draw the boxes on the displayed image, or remove the "
                "orientation (exiftool -Orientation= FILE)"
            )
        return Fault("other-size", image.id, None, f"{message}: its boxes would be misplaced")
    if min(header.size) < MIN_TRAINING_SIDE_PX:
        message = f"{file.path} is {shown_size} pixels, too small: not trained on"
        return Fault("tiny-image", image.id, None, message, fatal=False)
    return None


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def find_image(file_name: str, image_dir: Path) -> Path:
    """The file of an image in `image_dir`, even if a tool put folders before its name.

    Label Studio writes `images/1.png` for a file in the folder images, on Windows `images\\1.png`.

    Raises:
        FileNotFoundError: it is in none of the possible places; names them.
    """
    name = file_name.replace("\\", "/")
    last = name.rsplit("/", 1)[-1]
    places = dict.fromkeys(
        [image_dir / file_name, image_dir / name, image_dir.parent / name, image_dir / last]
    )
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        elsewhere = "".join(f", nor {place}" for place in list(places)[1:])
        raise FileNotFoundError(f"there is no file {next(iter(places))}{elsewhere}")
    return found
