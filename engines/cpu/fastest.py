"""Finds the fastest of several ways to compute on this machine, measured once per bundle."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engines.compiled_cache import keep_compiled, read_compiled

ROUNDS = 3  # after one that does not count
FILE = "fastest.json"
logger = logging.getLogger(__name__)


def read_fastest(bundle: Path, *, key: str) -> str | None:
    """The fastest way that was measured with the same key; None if it was not measured."""
    kept = read_compiled(bundle, FILE, key=key)
    return None if kept is None else _fastest(json.loads(kept))


def measure_fastest(bundle: Path, ways: Mapping[str, Callable[[], object]], *, key: str) -> str:
    """Run all ways in turn, and remember which took the least time.

    Args:
        ways: name -> a function that runs it once; the first wins a tie.
        key: identifies the machine and everything else that the times depend on.
    """
    seconds = {way: float("inf") for way in ways}
    for round_number in range(1 + ROUNDS):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            if round_number:
                seconds[way] = min(seconds[way], time.perf_counter() - started)
    kept = json.dumps(seconds).encode()
    keep_compiled(bundle, FILE, key=key, export=lambda: memoryview(kept))
    times = ", ".join(f"{way} {1000 * taken:.0f} ms" for way, taken in seconds.items())
    logger.info("measured on this machine: %s", times)
    return _fastest(seconds)


def _fastest(seconds: Mapping[str, float]) -> str:
    return min(seconds, key=lambda way: seconds[way])
