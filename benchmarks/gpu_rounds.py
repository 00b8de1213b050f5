"""Rounds in which contestants take turns, each in its process; whatever fails, fails alone."""

import gc
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.contestant_process import ContestantProcess
from engines.base import EngineFailure

Times = dict[str, float]  # milliseconds by what was done
Turn = Callable[[], Times]
Opener = Callable[[str, Any], tuple[Turn, Any]]  # of a contestant's name and a task


# What a library raises that is missing, is another version, or does not take these inputs. Any
# other exception ends the process, and its rows.
FAULTS = (
    *(ImportError, AttributeError, TypeError, ValueError, LookupError, AssertionError),
    *(OSError, RuntimeError, EngineFailure),
)


class Failed(NamedTuple):
    """Why there is no answer."""

    reason: str


class Measured(NamedTuple):
    """What is known of a task: by contestant, what its opener said, and its turns."""

    task: Any
    about: dict[str, Any]
    turns: dict[str, list[Times]]
    is_whole: bool  # not interrupted

    def median(self, name: str, what: str) -> float | None:
        """Milliseconds of a contestant, if it has taken a turn."""
        times = self.times(name, what)
        return statistics.median(times) if times else None

    def times(self, name: str, what: str) -> list[float]:
        """Milliseconds of a contestant in every turn."""
        return [turn[what] for turn in self.turns[name] if what in turn]


def measure(
    opener: Opener,
    names: Sequence[str],
    *,
    tasks: Sequence[Any],
    rounds: int,
    start: Callable[..., ContestantProcess] = ContestantProcess,
) -> Iterator[Measured]:
    """Every task as it ends. Ctrl-C ends the current one, which then is the last."""
    running: dict[str, ContestantProcess | None] = {}
    try:
        for name in names:
            print(f"starting {name}", file=sys.stderr, flush=True)
            running[name] = _start(start, opener, name, tasks, rounds)
        for task in tasks:
            measured = _measure_task(task, running, rounds)
            yield measured
            if not measured.is_whole:
                return
    finally:
        for contestant in running.values():
            if contestant is not None:
                contestant.close()


def _start(start: Callable[..., ContestantProcess], *arguments: Any) -> ContestantProcess | None:
    try:
        return start(_open_contestant, *arguments)
    except (EOFError, OSError):
        return None


def _measure_task(task: Any, running: dict[str, ContestantProcess | None], rounds: int) -> Measured:
    about: dict[str, Any] = {name: Failed("interrupted") for name in running}
    turns: dict[str, list[Times]] = {name: [] for name in running}
    try:
        for name, contestant in running.items():
            print(f"{task}: {name}", file=sys.stderr, flush=True)
            about[name] = _ask(contestant)
        for _ in range(rounds):
            for name, contestant in running.items():
                answer = _ask(contestant)
                if isinstance(answer, Failed):
                    about[name] = answer
                else:
                    turns[name].append(answer)
    except KeyboardInterrupt:
        return Measured(task, about, turns, is_whole=False)
    return Measured(task, about, turns, is_whole=True)


def _ask(contestant: ContestantProcess | None) -> Any:
    try:
        if contestant is None:
            raise EOFError
        return contestant.ask()
    except (EOFError, OSError):
        return Failed("its process ended; standard error says why")


# --- in the process of a contestant


def _open_contestant(
    opener: Opener, name: str, tasks: Sequence[Any], rounds: int
) -> tuple[Callable[[], Any], None]:
    """A function that answers for every task: what its opener says, and then turn by turn."""
    return _answers(opener, name, tasks, rounds).__next__, None


def _answers(opener: Opener, name: str, tasks: Sequence[Any], rounds: int) -> Iterator[Any]:
    for task in tasks:
        turn, failed = None, None
        for _ in range(1 + rounds):
            answer: Any = None
            if failed is None:
                try:
                    if turn is None:
                        turn, answer = opener(name, task)
                    else:
                        answer = turn()
                except FAULTS as error:
                    failed = Failed(f"{type(error).__name__}: {error}".splitlines()[0])
            yield failed or answer
        del turn
        gc.collect()
