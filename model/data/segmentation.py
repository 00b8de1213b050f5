"""The box around a segmentation in COCO's format, for annotations that have no box."""

import math
from typing import Any

from model.data.fields import read_number, read_size
from model.data.formats.shapes import around
from model.data.formats.source import Box

LARGEST_MASK_PX = 1_000_000_000


def box_of(segmentation: Any) -> Box | None:
    """(x, y, width, height) around polygons or a run-length mask; None if it is neither."""
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in polygons):
        return None
    numbers = [read_number(value) for polygon in polygons for value in polygon]
    known = [number for number in numbers if number is not None]
    if not known or len(known) != len(numbers):
        return None
    return around(list(zip(known[::2], known[1::2], strict=True)))


def _box_of_mask(mask: dict[str, Any]) -> Box | None:
    """The box of a mask given by run lengths along the columns, as numbers or COCO's text."""
    counts, size = mask.get("counts"), mask.get("size")
    sides = read_size(*size) if isinstance(size, list) and len(size) == 2 else None
    if isinstance(counts, str):
        counts = _decoded(counts)
    if sides is None or not isinstance(counts, list) or math.prod(sides) > LARGEST_MASK_PX:
        return None
    if not all(type(count) is int and count >= 0 for count in counts):
        return None
    return _box_of_runs(counts, *sides)


def _box_of_runs(counts: list[int], height: int, width: int) -> Box | None:
    """The box of runs that alternate between outside and inside; None if the mask is empty."""
    left, top, right, bottom = width, height, 0, 0
    start = 0
    for number, count in enumerate(counts):
        end = start + count
        if number % 2 and count:
            first, last = start // height, (end - 1) // height
            left, right = min(left, first), max(right, last + 1)
            # A run over several columns touches the upper and the lower edge.
            top = min(top, start % height if first == last else 0)
            bottom = max(bottom, (end - 1) % height + 1 if first == last else height)
        start = end
    if start > height * width or right == 0:
        return None
    return float(left), float(top), float(right - left), float(bottom - top)


def _decoded(text: str) -> list[int] | None:
    """Run lengths from COCO's text: 5 bits per character; from the fourth number on, each is the
    difference from the one before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts if shift == 0 else None
