"""Where charts draw what."""

import math
import re

import pytest

from model.pages.charts import Axis, Bar, Line, chart


def paths(svg: str, name: str) -> list[str]:
    return re.findall(rf'<path class="{name}" d="([^"]*)"', svg)


def points(path: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, pair.split())) for pair in re.findall(r"[\d.]+ [\d.]+", path)]


def test_a_line_goes_from_the_corner_of_the_axes_to_the_opposite_one() -> None:
    line = Line("any", [2, 4], [0, 10])

    figure = chart("title", [line], x=Axis("x", 2, 4), y=Axis("y", 0, 10))

    (path,) = paths(figure, "line l0")[:1]
    assert points(path) == [(44, 208), (348, 10)]


def test_a_line_is_interrupted_where_it_is_undefined_and_one_point_is_a_dot() -> None:
    line = Line("any", [0, 0.25, 0.5, 0.75, 1], [0, math.nan, 0.5, 0.5, math.nan])

    path = paths(chart("title", [line], x=Axis("x"), y=Axis("y")), "line l0")[0]

    assert path == "M44.0 208.0h0M196.0 109.0L272.0 109.0"


def test_values_beyond_an_axis_are_put_at_its_end() -> None:
    figure = chart("title", [Line("any", [0, 1], [-5, math.inf])], x=Axis("x"), y=Axis("y"))

    assert points(paths(figure, "line l0")[0]) == [(44, 208), (348, 10)]


def test_a_bar_stands_on_the_axis_and_a_mark_is_as_high_as_the_chart() -> None:
    figure = chart(
        "title", [], x=Axis("x"), y=Axis("y"), bars=[Bar(0, 0.5, 0.5)], mark=(0.5, "here")
    )

    assert '<rect class="column" x="45.0" y="109.0" width="150.0" height="99.0"/>' in figure
    assert paths(figure, "mark")[0] == "M196.0 208V10"
    assert "here" in figure


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 50, [10, 20, 30, 40, 50]),
        (0, 37.2, [0, 10, 20, 30]),
        (3, 3, [3]),
        (0, 0.004, [0, 0.001, 0.002, 0.003, 0.004]),
    ],
)
def test_ticks_are_round_numbers_along_the_axis(
    low: float, high: float, ticks: list[float]
) -> None:
    assert Axis("any", low, high).ticks() == pytest.approx(ticks)


def test_text_is_escaped() -> None:
    figure = chart("<b>", [Line("<i>", [0], [0])], x=Axis("<u>"), y=Axis("<s>"), mark=(0, "<p>"))

    assert not re.search(r"<[biusp]>", figure)
