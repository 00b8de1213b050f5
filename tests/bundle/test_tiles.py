"""Where tiles are, and what happens to boxes that several of them contain."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.detect import detect
from bundle.postprocess import ImageOutput, RawOutput
from bundle.preprocess import Preprocess
from bundle.tiles import Window, cut, merge, num_windows

SIZE = (100, 160)  # height, width
WHOLE, LEFT, RIGHT = cut(SIZE, 100)
Box = tuple[int, int, int, int]


def output_of(window: Window, *found: tuple[float, int, Box]) -> ImageOutput:
    """Score, label and xyxy box in pixels of the image, as the graph answers for a window."""
    sides = np.array([window.right - window.left, window.bottom - window.top] * 2)
    boxes = [(np.array(box) - (window.left, window.top) * 2) / sides for _, _, box in found]
    return ImageOutput(
        np.array([score for score, _, _ in found], np.float32),
        np.array([label for _, label, _ in found], np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
    )


def merged(
    whole: Sequence[tuple[float, int, Box]] = (),
    left: Sequence[tuple[float, int, Box]] = (),
    right: Sequence[tuple[float, int, Box]] = (),
) -> list[tuple[float, int, Box]]:
    """The merged detections of an image of 100 x 160 pixels and its two tiles."""
    parts = ((WHOLE, whole), (LEFT, left), (RIGHT, right))
    found = merge([WHOLE, LEFT, RIGHT], [output_of(window, *part) for window, part in parts])
    boxes = (found.boxes * (160, 100, 160, 100)).round().astype(int).tolist()
    scores, labels = found.scores.astype(float).round(3).tolist(), found.labels.tolist()
    return [(s, k, tuple(box)) for s, k, box in zip(scores, labels, boxes, strict=True)]


def test_the_tiles_of_these_tests_share_40_columns() -> None:
    assert [LEFT, RIGHT] == [(0, 0, 100, 100), (0, 60, 100, 160)]


def test_tiles_are_counted_without_being_made() -> None:
    assert num_windows((10**12, 10**12), 64) > 10**20


@given(st.integers(1, 700), st.integers(1, 700), st.integers(64, 300))
def test_tiles_cover_the_image_and_overlap_by_a_quarter(height: int, width: int, tile: int) -> None:
    whole, *tiles = cut((height, width), tile)

    assert num_windows((height, width), tile) == 1 + len(tiles)
    covered = np.zeros((height, width), np.bool_)
    for top, left, bottom, right in tiles:
        covered[top:bottom, left:right] = True
    lefts = sorted({window.left for window in tiles})
    assert whole == (0, 0, height, width)
    assert covered.all() == bool(tiles) == (max(height, width) > tile)
    assert all(window.bottom - window.top == min(tile, height) for window in tiles)
    assert all(window.right - window.left == min(tile, width) for window in tiles)
    assert all(step <= 0.75 * tile for step in np.diff(lefts))


def test_an_image_is_not_cut_unless_it_is_asked_for() -> None:
    assert cut((5000, 5000), None) == [(0, 0, 5000, 5000)]


def test_an_object_in_two_tiles_is_one() -> None:
    found = merged(left=[(0.8, 0, (65, 20, 90, 50))], right=[(0.9, 0, (66, 20, 90, 50))])

    assert found == [(0.9, 0, (66, 20, 90, 50))]


@pytest.mark.parametrize(("shift", "num_found"), [(6, 1), (7, 2)])  # IoU 0.54, 0.48
def test_boxes_in_two_tiles_are_one_object_if_half_of_them_overlaps(
    shift: int, num_found: int
) -> None:
    shifted = (65 + shift, 20, 85 + shift, 40)

    found = merged(left=[(0.9, 0, (65, 20, 85, 40))], right=[(0.8, 0, shifted)])

    assert len(found) == num_found


def test_an_object_of_another_class_stays() -> None:
    box = (65, 20, 90, 50)

    found = merged(left=[(0.8, 0, box)], right=[(0.9, 1, box)])

    assert found == [(0.9, 1, box), (0.8, 0, box)]


def test_what_one_part_finds_twice_stays() -> None:
    found = merged(left=[(0.9, 0, (10, 20, 40, 50)), (0.8, 0, (11, 20, 40, 50))])

    assert len(found) == 2


def test_an_object_that_a_tile_cuts_gives_way_to_the_whole_of_it_although_it_is_less_sure() -> None:
    found = merged(left=[(0.9, 0, (70, 20, 100, 50))], right=[(0.6, 0, (70, 20, 130, 50))])

    assert found == [(0.6, 0, (70, 20, 130, 50))]


def test_an_object_that_a_tile_cuts_stays_beside_one_that_is_hardly_there() -> None:
    cut_off, hardly_there = (0.9, 0, (70, 20, 100, 50)), (0.1, 0, (70, 20, 130, 50))
    elsewhere = (0.6, 0, (5, 60, 25, 90))

    found = merged(whole=[elsewhere], left=[cut_off], right=[hardly_there])

    assert found == [cut_off, elsewhere, hardly_there]


def test_halves_of_an_object_larger_than_the_overlap_give_way_to_it() -> None:
    found = merged(
        whole=[(0.7, 0, (20, 10, 150, 90))],
        left=[(0.9, 0, (20, 10, 100, 90))],
        right=[(0.9, 0, (60, 10, 150, 90))],
    )

    assert found == [(0.7, 0, (20, 10, 150, 90))]


def test_an_object_at_the_edge_of_the_image_is_not_cut() -> None:
    found = merged(whole=[(0.5, 0, (4, 3, 60, 100))], left=[(0.9, 0, (0, 0, 50, 100))])

    assert found == [(0.9, 0, (0, 0, 50, 100))]


def test_small_objects_inside_a_large_one_stay() -> None:
    found = merged(whole=[(0.9, 0, (10, 10, 90, 90))], left=[(0.8, 0, (20, 20, 40, 40))])

    assert len(found) == 2


def test_nothing_in_any_part_is_nothing() -> None:
    assert merged() == []


def test_an_image_without_tiles_keeps_its_output() -> None:
    output = output_of(WHOLE, (0.9, 0, (10, 10, 90, 90)))

    assert merge([WHOLE], [output]) is output


@pytest.mark.parametrize(
    ("tile", "num_found", "sizes"),
    [(None, 1, {(43, 64)}), (128, 7, {(43, 64), (64, 64)}), (256, 3, {(43, 64), (50, 64)})],
)
def test_every_part_is_looked_at_in_its_own_size(
    tile: int | None, num_found: int, sizes: set[tuple[int, int]]
) -> None:
    shapes = []

    def predict(images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        shapes.append(images.shape)
        middle = np.array([[[0.4, 0.4, 0.6, 0.6]]], np.float32)
        return RawOutput(np.array([[0.5]], np.float32), np.array([[0]]), middle)

    image = np.zeros((200, 300, 3), np.uint8)
    (found,) = detect(
        predict, [image], preprocess=Preprocess(short_side=64, long_side=64), tile_px=tile
    )

    assert len(found) == len(shapes) == num_found
    assert set(shapes) == {(1, *size, 3) for size in sizes}
