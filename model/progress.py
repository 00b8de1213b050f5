"""Progress bars."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

TERMINAL_INTERVAL_S = 0.5
LOG_INTERVAL_S = 30.0  # without a terminal, each refresh is a line in the log


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A tqdm bar on stderr, refreshed rarely if stderr is not a terminal."""
    interval = TERMINAL_INTERVAL_S if sys.stderr.isatty() else LOG_INTERVAL_S
    return tqdm(iterable, mininterval=interval, **options)
