"""Progress bars."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm

TERMINAL_INTERVAL_S = 0.5
LOG_INTERVAL_S = 30.0  # without a terminal, each refresh is a line in the log


class _WhileItIsRead:
    """stderr until its reader ends, as `tee` does on Ctrl-C: the work goes on, and is saved."""

    def write(self, text: str) -> None:
        with suppress(BrokenPipeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            sys.stderr.flush()

    def __eq__(self, other: object) -> bool:  # tqdm asks, so that log lines do not hit the bar
        return other is sys.stderr or other is self

    def __hash__(self) -> int:
        return id(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A tqdm bar on stderr, refreshed rarely if stderr is not a terminal."""
    interval = TERMINAL_INTERVAL_S if sys.stderr.isatty() else LOG_INTERVAL_S
    return tqdm(iterable, mininterval=interval, file=_WhileItIsRead(), **options)
