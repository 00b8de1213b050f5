"""One image file of a data set: its header, a digest, and its pixels."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from bundle.preprocess import DATASET_FORMATS, ImageHeader, decode_image, read_header
from bundle.regular_file import require_file

Image = TypeVar("Image")

NUM_READERS = 8  # threads that wait for files


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file; files with the same `digest` have the same content."""

    path: Path
    header: ImageHeader
    digest: bytes


def read_pixels(path: Path) -> np.ndarray:
    """Pixels (h, w, 3) uint8 RGB as displayed, of any format allowed in data sets.

    Raises:
        ValueError: as `decode_file`.
    """
    return decode_file(path, decode_image)


def decode_file(path: Path, decode: Callable[..., Image]) -> Image:
    """What `decode_image`, or a stand-in for it, makes of a file.

    Raises:
        ValueError: the file is missing or damaged; names it.
    """
    try:
        return decode(require_file(path).read_bytes(), formats=DATASET_FORMATS)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_image_file(path: Path, *, decode: bool = False) -> ImageFile | ValueError:
    """An image file, or what is wrong with it; the error names it.

    Args:
        decode: decode its pixels; otherwise only if the file seems truncated.
    """
    try:
        data = require_file(path).read_bytes()
        header = read_header(data, DATASET_FORMATS)
        if decode or not _has_its_end(data):
            decode_image(data, formats=DATASET_FORMATS)
    except (OSError, ValueError) as error:
        return ValueError(f"{path}: {error}")
    return ImageFile(path, header, hashlib.blake2b(data, digest_size=16).digest())


def read_all(paths: Sequence[Path]) -> dict[Path, ImageFile | ValueError]:
    """Every file, as `read_image_file` reads it."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = pool.map(read_image_file, paths)
        bar = tqdm(found, total=len(paths), desc="reading images", unit=" images", leave=False)
        return dict(zip(paths, bar, strict=True))


def _has_its_end(data: bytes) -> bool:
    """Whether the file has its format's end marker; False if the format has none."""
    if data.startswith(b"\xff\xd8"):
        return data.endswith(b"\xff\xd9")
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-64:]
    if data.startswith(b"RIFF"):
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False
