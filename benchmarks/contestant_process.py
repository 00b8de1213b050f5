"""A process of its own for what a benchmark measures, so that contestants do not share memory."""

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")


class ContestantProcess:
    """Runs a function as often as it is asked to, in a process that Ctrl-C does not reach.

    Attributes:
        about: what the opener said of the contestant.
    """

    def __init__(
        self, opener: Callable[..., tuple[Callable[[], Any], Any]], *arguments: Any
    ) -> None:
        """Open the contestant; EOFError if that fails, and stderr says why.

        Args:
            opener: called in the process; returns the function, and what to say about it.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(theirs, opener, arguments), daemon=True
        )
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits
        self._process.start()
        signal.signal(signal.SIGINT, handler)
        theirs.close()
        try:
            self.about = self._pipe.recv()
        except BaseException:
            self.close()
            raise

    def ask(self) -> Any:
        """What the function returns, run once more."""
        self._pipe.send(None)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()


def _answer(
    pipe: Connection,
    opener: Callable[..., tuple[Callable[[], Any], Any]],
    arguments: tuple[Any, ...],
) -> None:
    function, about = opener(*arguments)
    pipe.send(about)
    with suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(function())


def apart(function: Callable[[], Result], *, timeout_s: float) -> Result:
    """Call a function in a separate process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function).result(timeout_s)
