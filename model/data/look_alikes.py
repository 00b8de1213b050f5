"""Validation images that look like training images, though their files differ.

They were resized or saved again, or show the same scene a moment later. Two images look alike if
few bits of their difference hashes differ; each bit says whether the image gets brighter from one
cell of a coarse grid to the next.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from model.data.image_file import NUM_READERS, read_pixels
from model.data.split import Split
from model.progress import progress_bar

_GRID = 16  # cells across and down
_MIN_RISE = 2  # grey levels, so that noise on plain ground is no pattern
_MIN_BITS = 16  # of 256 that are set; a plainer image looks like any other
# Bits that differ, as a share of those set in both. Images of COCO and BCCD at a quarter to one and
# a half times their size, as JPEG (quality 30 to 80), WebP or PNG: at most 0.15 from the original.
# Any two of them: 0.32 and more, but for one slide of BCCD that was photographed twice (0.14).
_MAX_DIFFERENCE = 0.2
_FILES_AT_ONCE = 16
_ROWS_AT_ONCE = 32


class LookAlike(NamedTuple):
    """A validation image, and the training image that it looks like most."""

    val: Path
    train: Path


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        pairs: the validation images that look like a training image.
        num_compared: images there was time for, of `num_images`.
        num_damaged: images among these that cannot be decoded.
    """

    pairs: tuple[LookAlike, ...]
    num_compared: int
    num_images: int
    num_damaged: int = 0

    def __str__(self) -> str:
        damage = f"; images that cannot be decoded: {self.num_damaged}, see the check with --decode"
        return self._found() + damage * bool(self.num_damaged)

    def _found(self) -> str:
        limit = ""
        if self.num_compared < self.num_images:
            limit = (
                f" among the {self.num_compared} of {self.num_images} images that there was time "
                "to compare"
            )
        if not self.pairs:
            return f"apart from equal files, no validation image looks like a training image{limit}"
        first = self.pairs[0]
        return (
            f"validation images that look like training images: {len(self.pairs)}{limit}, such as "
            f"{first.val} like {first.train}: AP will say too little about new images; keep images "
            "that look alike in one split"
        )


def compare_splits(
    train: Split,
    val: Split,
    *,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Compare every validation image with every training image, or as many as there is time for.

    Equal files are left out, as the check reports them already, and damaged ones are counted.
    """
    same = {file.digest for file in train.files.values()}
    ours = list({file.path: None for file in train.files.values()})
    theirs = list({file.path: None for file in val.files.values() if file.digest not in same})
    order = list(_taking_turns(_shuffled(theirs), _shuffled(ours)))
    if not theirs:
        return Comparison((), len(order), len(order))
    bits: dict[Path, np.ndarray | None] = {}
    end = clock() + seconds
    with (
        ThreadPoolExecutor(NUM_READERS) as pool,
        progress_bar(total=len(order), desc="comparing images", unit=" images", leave=False) as bar,
    ):
        for start in range(0, len(order), _FILES_AT_ONCE):
            if clock() >= end:
                break
            some = order[start : start + _FILES_AT_ONCE]
            bits |= zip(some, pool.map(_try_hash, some), strict=True)
            bar.update(len(some))
    hashes = {path: found for path, found in bits.items() if found is not None}
    pairs = _nearest(theirs, ours, hashes)
    return Comparison(tuple(pairs), len(bits), len(order), len(bits) - len(hashes))


def difference_hash(path: Path) -> np.ndarray:
    """(4,) uint64: 256 bits that hardly change when an image is resized or saved again.

    Raises:
        ValueError: the file is missing or damaged.
    """
    grey = Image.fromarray(read_pixels(path)).convert("L")
    cells = np.asarray(grey.resize((_GRID + 1, _GRID), Image.Resampling.BOX), np.int16)
    return np.packbits(np.diff(cells, axis=1) >= _MIN_RISE).view(np.uint64)


def _try_hash(path: Path) -> np.ndarray | None:
    try:
        return difference_hash(path)
    except ValueError:
        return None


def _nearest(
    theirs: Sequence[Path], ours: Sequence[Path], hashes: Mapping[Path, np.ndarray]
) -> Iterator[LookAlike]:
    ours, theirs = (
        [path for path in paths if path in hashes and _count(hashes[path]) >= _MIN_BITS]
        for paths in (ours, theirs)
    )
    if not ours:
        return
    train = np.stack([hashes[path] for path in ours])  # (T, 4)
    for start in range(0, len(theirs), _ROWS_AT_ONCE):
        some = theirs[start : start + _ROWS_AT_ONCE]
        val = np.stack([hashes[path] for path in some])[:, None]  # (V, 1, 4)
        difference = _count(val ^ train) / (_count(val) + _count(train))  # (V, T)
        for path, row in zip(some, difference, strict=True):
            if row.min() <= _MAX_DIFFERENCE:
                yield LookAlike(path, ours[int(row.argmin())])


def _count(bits: np.ndarray) -> np.ndarray:
    """How many bits are set, over the last axis."""
    counts: np.ndarray = np.bitwise_count(bits).sum(-1, dtype=np.int32)
    return counts


def _shuffled(paths: Sequence[Path]) -> list[Path]:
    """The same order every time, and any part of it is a sample."""
    return [paths[index] for index in np.random.default_rng(0).permutation(len(paths))]


def _taking_turns(first: Sequence[Path], second: Sequence[Path]) -> Iterator[Path]:
    """One of each in turn: most pairs are compared if half of the images are of either split."""
    for pair in zip_longest(first, second):
        yield from (path for path in pair if path is not None)
