"""The table at the end of an export of several precisions: AP, time and size of each bundle."""

import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import NamedTuple

from bundle.layout import CACHE_FOLDER
from bundle.manifest import Bundle, Manifest
from bundle.preprocess import pad_batch, photograph
from bundle.terminal import one_line
from engines.base import Engine
from engines.load import open_engine
from export.several import Outcome

TIME_S = 30.0  # for all bundles together
MIN_ROUNDS, MAX_ROUNDS = 5, 100
HEAD = "| precision | AP | ms per image | quartiles | runs in | MB | not written because |"


class Speed(NamedTuple):
    """Seconds of every run on one image, and what the engine computed in."""

    seconds: Sequence[float]
    runs_in: str

    @property
    def quartiles_ms(self) -> tuple[float, float, float]:
        """The lower quartile, the median and the upper quartile."""
        first, median, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first * 1000, median * 1000, third * 1000


def measure_speeds(outcomes: Sequence[Outcome]) -> dict[str, Speed]:
    """Run all bundles in turn, in the engines that would serve them here, on one image at a time.

    The image has the size that the preprocessing gives a 4:3 photograph. As the engines take turns,
    other work on the machine slows all of them alike. What they compile is removed.

    Returns:
        The speed of every precision that has a bundle.

    Raises:
        ValueError, EngineFailure: a bundle does not run.
    """
    bundles = {one.precision: one.bundle for one in outcomes if one.bundle is not None}
    try:
        with ExitStack() as stack:
            engines: dict[str, Engine] = {
                name: stack.enter_context(closing(open_engine(bundle)))
                for name, bundle in bundles.items()
            }
            return dict(_in_turn(engines, next(iter(bundles.values())).manifest)) if bundles else {}
    finally:
        for bundle in bundles.values():
            shutil.rmtree(bundle.directory / CACHE_FOLDER, ignore_errors=True)


def _in_turn(engines: Mapping[str, Engine], manifest: Manifest) -> Iterator[tuple[str, Speed]]:
    preprocess = manifest.preprocess
    batch = pad_batch([photograph(preprocess)], preprocess.min_side)
    for engine in engines.values():
        engine.run(*batch)  # allocates
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    end = time.perf_counter() + TIME_S
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run(*batch)
            seconds[name].append(time.perf_counter() - start)
    for name, engine in engines.items():
        yield name, Speed(seconds[name], engine.info.precision)


def table(outcomes: Sequence[Outcome], speeds: Mapping[str, Speed]) -> str:
    """A Markdown table with a row for each precision."""
    rows = [_row(outcome, speeds.get(outcome.precision)) for outcome in outcomes]
    return "\n".join([HEAD, "|" + "---|" * HEAD.count(" | ") + "---|", *rows])


def _row(outcome: Outcome, speed: Speed | None) -> str:
    ap = "" if outcome.ap is None else f"{outcome.ap:.4f}"
    median = quartiles = runs_in = size = ""
    if speed is not None:
        low, middle, high = speed.quartiles_ms
        median, quartiles, runs_in = f"{middle:.1f}", f"{low:.1f}-{high:.1f}", speed.runs_in
    if outcome.bundle is not None:
        size = f"{_size_bytes(outcome.bundle) / 1e6:.1f}"
    reason = one_line(outcome.reason).replace("|", "\\|")
    cells = [outcome.precision, ap, median, quartiles, runs_in, size, reason]
    return f"| {' | '.join(cells)} |"


def _size_bytes(bundle: Bundle) -> int:
    """Of all files, without what engines compiled."""
    cache = bundle.directory / CACHE_FOLDER
    files = (file for file in bundle.directory.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files if cache not in file.parents)
