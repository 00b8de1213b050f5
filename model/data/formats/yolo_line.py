"""The lines of YOLO's label files: a box or a polygon, in fractions of the image's sides."""

from collections.abc import Sequence

from model.data.fields import read_number
from model.data.formats.shapes import around
from model.data.formats.source import Box

LARGEST_FRACTION = 1.1  # beyond rounding: more is a length in pixels
_EXCESS = 0.1  # of a box's sides, by which a keypoint may be outside


def parse_line(line: str, *, has_points: bool) -> tuple[int, list[float]]:
    """The class, and the 4 numbers of a box (cx, cy, w, h) or the points (x, y) of a polygon.

    Args:
        has_points: the box is followed by the keypoints of a pose, which are not read.

    Raises:
        ValueError: it is not such a line; shows what it contains.
    """
    words = line.split()
    numbers = [number for number in map(read_number, words) if number is not None]
    if len(numbers) != len(words):
        raise ValueError(f"expected numbers, found {_short(line)}")
    label, values = numbers[0], numbers[1:]
    if label != int(label) or label < 0:
        raise ValueError(f"expected the index of a class, found {words[0]}")
    if has_points:
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(
            "expected 4 numbers, or the 3 or more points of a polygon, after the class, found "
            f"{len(words) - 1}: {_short(line)}"
        )
    if max(map(abs, values)) > LARGEST_FRACTION:
        raise ValueError(f"expected fractions of the image's sides, found {_short(line)}")
    return int(label), values


def box_of(values: Sequence[float]) -> Box:
    """The box (x, y, w, h) of a line, in fractions of the image's sides."""
    if len(values) > 4:
        return around(list(zip(values[::2], values[1::2], strict=True)))
    cx, cy, w, h = values
    return cx - w / 2, cy - h / 2, w, h


def keypoint_shape(polygons: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """[number, numbers of each] of keypoints, if what was read as polygons are poses.

    Then every line has a box and as many keypoints, all in the box, or 0 where they are not known;
    and the size of a box is often far from its points, where a polygon has no corner.
    """
    lengths = {len(values) for values in polygons}
    for dimensions in (2, 3):
        if len(lengths) != 1 or (count := min(lengths) - 4) % dimensions:
            continue
        shape = count // dimensions, dimensions
        is_inside = all(_has_keypoints_inside(values, dimensions) for values in polygons)
        if is_inside and (dimensions == 3 or any(map(_is_apart, polygons))):
            return shape
    return None


def _has_keypoints_inside(values: Sequence[float], dimensions: int) -> bool:
    cx, cy, w, h = values[:4]
    points = [values[start : start + dimensions] for start in range(4, len(values), dimensions)]
    most_x, most_y = w * (0.5 + _EXCESS), h * (0.5 + _EXCESS)
    return all(
        (
            point[0] == point[1] == 0
            or (abs(point[0] - cx) <= most_x and abs(point[1] - cy) <= most_y)
        )
        and (dimensions == 2 or point[2] in (0, 1))
        for point in points
    )


def _is_apart(values: Sequence[float]) -> bool:
    """Whether the second point of a polygon is further from all others than these are wide."""
    others = [values[0:2], *(values[start : start + 2] for start in range(4, len(values), 2))]
    x, y, w, h = around([(one[0], one[1]) for one in others])
    reach = max(w, h)
    return not (x - reach <= values[2] <= x + w + reach and y - reach <= values[3] <= y + h + reach)


def _short(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
