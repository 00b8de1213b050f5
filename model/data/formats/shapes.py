"""The boxes (x, y, width, height) around the shapes that annotation tools draw."""

import math
from collections.abc import Iterable, Sequence

from model.data.formats.source import Box

Point = tuple[float, float]


def around(points: Iterable[Point]) -> Box:
    """The box around at least one point."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def around_boxes(boxes: Sequence[Box]) -> Box:
    """The box around several boxes."""
    return around([(x, y) for x, y, _, _ in boxes] + [(x + w, y + h) for x, y, w, h in boxes])


def around_rotated(box: Box, degrees: float, *, pivot: Point | None = None) -> Box:
    """The box around a box that is rotated clockwise, as seen on the screen, about its centre."""
    x, y, w, h = box
    pivot = pivot or (x + w / 2, y + h / 2)
    corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    return around([_turned(corner, degrees, pivot) for corner in corners])


def around_ellipse(centre: Point, radii: Point, *, degrees: float = 0) -> Box:
    """The box around a rotated ellipse with the radii (x, y)."""
    angle = math.radians(degrees)
    half_w = math.hypot(radii[0] * math.cos(angle), radii[1] * math.sin(angle))
    half_h = math.hypot(radii[0] * math.sin(angle), radii[1] * math.cos(angle))
    return centre[0] - half_w, centre[1] - half_h, 2 * half_w, 2 * half_h


def _turned(point: Point, degrees: float, pivot: Point) -> Point:
    if degrees == 0:
        return point
    angle = math.radians(degrees)
    x, y = point[0] - pivot[0], point[1] - pivot[1]
    return (
        pivot[0] + x * math.cos(angle) - y * math.sin(angle),
        pivot[1] + x * math.sin(angle) + y * math.cos(angle),
    )
