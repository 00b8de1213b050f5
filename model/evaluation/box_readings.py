"""Other ways to read the boxes of detections: formats, and sizes that images were resized to."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

Entries = Sequence[Mapping[str, Any]]
_FORMATS: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("x, y, width, height", lambda b: b),
    ("x1, y1, x2, y2", lambda b: np.hstack((b[:, :2], b[:, 2:] - b[:, :2]))),
    ("centre x, centre y, width, height", lambda b: np.hstack((b[:, :2] - b[:, 2:] / 2, b[:, 2:]))),
]
_SHORT, _LONG = 800, 1333  # the published size: short side, largest long side
# Sides that images are resized to; an estimated one is taken for the nearest of these.
_USUAL_SIDES = np.array(sorted({*range(32, 4097, 32), *range(100, 4001, 100)}), dtype=np.float64)


class _Resizing(NamedTuple):
    """What boxes are measured in, other than pixels of their image.

    Attributes:
        name: in words; {n} is the side of the resized image.
        unit: (width, height) of images, both (N, 2) -> pixels of the image in one nth of that side.
        n: the side; None if it is estimated from the size of the objects.
        may_swap: whether y may come before x.
        is_centred: whether the image is centred in a square.
    """

    name: str
    unit: Callable[[np.ndarray], np.ndarray]
    n: float | None = None
    may_swap: bool = False
    is_centred: bool = False


def _short_side(sizes: np.ndarray) -> np.ndarray:
    return np.repeat(sizes.min(1, keepdims=True), 2, axis=1)


def _long_side(sizes: np.ndarray) -> np.ndarray:
    return np.repeat(sizes.max(1, keepdims=True), 2, axis=1)


_RESIZINGS = (
    _Resizing("", np.ones_like, 1, may_swap=True),
    _Resizing("normalised to 0..1", lambda sizes: sizes, 1, may_swap=True),
    _Resizing("normalised to 0..1000", lambda sizes: sizes, 1000, may_swap=True),
    _Resizing("normalised to 0..100", lambda sizes: sizes, 100),
    _Resizing(
        f"in pixels of the image resized to {_SHORT}x{_LONG}",
        lambda sizes: np.maximum(_short_side(sizes) / _SHORT, _long_side(sizes) / _LONG),
        1,
    ),
    _Resizing("in pixels of an image {n:.3g} times as large", np.ones_like),
    _Resizing("in pixels of the image squeezed to {n:g}x{n:g}", lambda sizes: sizes),
    _Resizing("in pixels of the image with a long side of {n:g}", _long_side),
    _Resizing("in pixels of the image with a short side of {n:g}", _short_side),
    _Resizing(
        "in pixels of a square of {n:g}x{n:g} with the image in its middle",
        _long_side,
        is_centred=True,
    ),
)


def box_readings(results: Entries, truth: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The ways in which detections' boxes may be meant, and the boxes read in each way.

    Yields:
        Words that follow "boxes were", and (N, 4) boxes [x, y, width, height] in pixels of their
        images. Nothing if the data set does not say how large images are.
    """
    images = {image["id"]: image for image in truth["images"]}
    if not all(image.get("width") and image.get("height") for image in truth["images"]):
        return
    objects = [a for a in truth["annotations"] if not a.get("iscrowd")]
    best = np.argsort([-entry["score"] for entry in results], kind="stable")[: len(objects)]
    boxes, sizes = _boxes(results), _sizes(results, images)
    for resizing in _RESIZINGS:
        object_sides = _boxes(objects)[:, 2:] / resizing.unit(_sizes(objects, images))
        orders = ([0, 1, 2, 3], [1, 0, 3, 2])[: resizing.may_swap + 1]
        for (written, convert), order in product(_FORMATS, orders):
            read = convert(boxes[:, order])
            n = resizing.n or _estimate(resizing, read[best, 2:], object_sides)
            if n is None:
                continue
            scaled = read * np.tile(resizing.unit(sizes) / n, 2)
            if resizing.is_centred:
                scaled[:, :2] -= (_long_side(sizes) - sizes) / 2
            words = [part.strip() for part in written.split(",")]
            told = f"[{', '.join(words[i] for i in order)}]"
            yield ", ".join(filter(None, (resizing.name.format(n=n), told))), scaled


def _estimate(resizing: _Resizing, found: np.ndarray, objects: np.ndarray) -> float | None:
    """The side for which detections are as large as objects; None if there is none."""
    ours, theirs = (float(np.median(np.sqrt(np.maximum(sides, 0).prod(1)))) if len(sides) else 0.0
                    for sides in (found, objects))  # fmt: skip
    if not (0 < ours < math.inf and theirs > 0):
        return None
    if resizing.unit is np.ones_like:  # a ratio
        return ours / theirs
    return float(min(_USUAL_SIDES, key=lambda side: abs(math.log(side * theirs / ours))))


def _boxes(entries: Entries) -> np.ndarray:
    return np.array([e["bbox"] for e in entries], dtype=np.float64).reshape(-1, 4)


def _sizes(entries: Entries, images: Mapping[int, Any]) -> np.ndarray:
    sizes = [(images[e["image_id"]]["width"], images[e["image_id"]]["height"]) for e in entries]
    return np.array(sizes, dtype=np.float64).reshape(-1, 2)
