"""Finds the fastest of several ways to compute on this machine, measured once per bundle."""

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engines.compiled_cache import keep_compiled, read_compiled

ROUNDS = 3  # after one that does not count
# Of short runs, more of them: of the demo on two AMD cores, each of two layouts was found fastest
# three times of six after 3 rounds, and one of them six times of six after 15.
MOST_ROUNDS = 15
MORE_UNTIL_S = 1.0
logger = logging.getLogger(__name__)


def read_fastest(bundle: Path, *, question: str, key: str) -> str | None:
    """The way that was found fastest with the same key; None if that was not measured."""
    kept = read_compiled(bundle, _file(question), key=key)
    return None if kept is None else str(json.loads(kept)["fastest"])


def measure_fastest(
    bundle: Path,
    ways: Mapping[str, Callable[[], object]],
    *,
    question: str,
    key: str,
    margin: float = 0.0,
    limit_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """Run all ways in turn, `ROUNDS` times or more, and remember the lowest median time.

    Args:
        ways: name -> a function that runs it once; the first is the default.
        question: what is measured; the answer is remembered under this name.
        key: identifies the machine and everything else that the times depend on.
        margin: the default is replaced only by a way that takes less time by this share.
        limit_s: no round starts later than this; the default is the answer if none counted. None
            beyond `ROUNDS` starts later than `MORE_UNTIL_S`.
    """
    started = clock()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(1 + MOST_ROUNDS):
        if clock() - started >= (limit_s if round_number <= ROUNDS else MORE_UNTIL_S):
            break
        for way, run in ways.items():
            way_started = clock()
            run()
            if round_number:
                seconds[way].append(clock() - way_started)
    fastest, medians = _fastest(seconds, margin)
    kept = json.dumps({"fastest": fastest, "median_s": medians}).encode()
    keep_compiled(bundle, _file(question), key=key, export=lambda: memoryview(kept))
    times = ", ".join(f"{way} {1000 * taken:.0f} ms" for way, taken in medians.items())
    logger.info(
        "measured on this machine, %s: %s; took %s",
        *(question, times or f"a round takes over {limit_s:g} s", fastest),
    )
    return fastest


def _fastest(seconds: Mapping[str, list[float]], margin: float) -> tuple[str, dict[str, float]]:
    """The way to take, and the medians, which are empty if nothing counted."""
    default = next(iter(seconds))
    if not seconds[default]:
        return default, {}
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    best = min(medians, key=lambda way: medians[way])
    is_clear = medians[best] < medians[default] * (1 - margin)
    return (best if is_clear else default), medians


def _file(question: str) -> str:
    return f"fastest {question}.json".replace(" ", "-")
