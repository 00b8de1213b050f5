"""Charts as inline SVG: lines, bars and marks over two axes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 42  # margins
_NUM_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """What an axis shows, from `low` to `high`."""

    label: str
    low: float = 0.0
    high: float = 1.0

    def place(self, value: float) -> float:
        """0..1 of a value between the ends; values beyond are put at them."""
        share = (value - self.low) / ((self.high - self.low) or 1)
        return min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Round numbers along the axis, about five."""
        span = (self.high - self.low) or 1
        power = 10.0 ** math.floor(math.log10(span / _NUM_TICKS))
        step = next(power * n for n in (1, 2, 5, 10) if power * n * _NUM_TICKS >= span * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class Line:
    """A line through points; a NaN in `ys` interrupts it."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Bar:
    """A bar from x `low` to `high` that is `y` high."""

    low: float
    high: float
    y: float


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x: Axis,
    y: Axis,
    bars: Iterable[Bar] = (),
    mark: tuple[float, str] | None = None,
) -> Markup:
    """A figure with axes, bars, lines and a legend.

    Args:
        mark: an x with a name, shown as an upright line.
    """
    parts = [*_grid(x, y), *(_bar(bar, x, y) for bar in bars)]
    parts += [_line(line, number, x, y) for number, line in enumerate(lines)]
    keys = [(f"line l{number}", line.name) for number, line in enumerate(lines)]
    if mark is not None:
        parts.append(_mark(mark[0], x))
        keys.append(("mark", mark[1]))
    legend = Markup().join(_key(name, text) for name, text in keys)
    return Markup(
        '<figure class="chart"><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
        "<figcaption><strong>{}</strong> {}</figcaption></figure>"
    ).format(_WIDTH, _HEIGHT, title, Markup().join(parts), title, legend)


def _at(x: Axis, value: float) -> float:
    return _LEFT + x.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _up(y: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - y.place(value) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(x: Axis, y: Axis) -> Iterable[Markup]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick in y.ticks():
        yield Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, _up(y, tick), right)
        yield _text(f"{tick:g}", _LEFT - 6, _up(y, tick) + 4, "end")
    for tick in x.ticks():
        yield Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(_at(x, tick), bottom, _TOP)
        yield _text(f"{tick:g}", _at(x, tick), bottom + 16, "middle")
    yield _text(x.label, (_LEFT + right) / 2, _HEIGHT - 6, "middle")
    yield Markup(
        '<text class="tick" text-anchor="middle" transform="translate(12 {:.1f}) rotate(-90)">{}'
        "</text>"
    ).format((_TOP + bottom) / 2, y.label)


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def _bar(bar: Bar, x: Axis, y: Axis) -> Markup:
    left, right, top = _at(x, bar.low), _at(x, bar.high), _up(y, bar.y)
    return Markup(
        '<rect class="column" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
    ).format(left + 1, top, max(right - left - 2, 0), _HEIGHT - _BOTTOM - top)


def _mark(value: float, x: Axis) -> Markup:
    return Markup('<path class="mark" d="M{:.1f} {}V{}"/>').format(
        _at(x, value), _HEIGHT - _BOTTOM, _TOP
    )


def _line(line: Line, number: int, x: Axis, y: Axis) -> Markup:
    """The line's runs between interruptions; a run of one point is a dot."""
    runs: list[list[str]] = [[]]
    for horizontal, vertical in zip(line.xs, line.ys, strict=True):
        if math.isnan(vertical):
            runs.append([])
        else:
            runs[-1].append(f"{_at(x, horizontal):.1f} {_up(y, vertical):.1f}")
    path = "".join("M" + "L".join(run) + "h0" * (len(run) == 1) for run in runs if run)
    return Markup('<path class="line l{}" d="{}"/>').format(number, path)


def _key(name: str, text: str) -> Markup:
    return Markup(
        '<span class="key"><svg viewBox="0 0 24 8" aria-hidden="true">'
        '<path class="{}" d="M0 4h24"/></svg> {}</span> '
    ).format(name, text)
