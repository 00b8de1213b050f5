"""Batches on their way through the engine: assembled in one thread, run in one or more others."""

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from engines.base import EngineFailure as RuntimeFailure
from service.batching.alarm import Alarm
from service.batching.ticket import Entry, Item, Result
from service.errors import EngineFailure, ServiceError

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")


@dataclass(slots=True, eq=False)
class Run(Generic[Item, Result]):
    """One batch on its way through the engine."""

    entries: list[Entry[Item, Result]]
    outcomes: list[Result | ServiceError] = field(default_factory=list)
    dropped: list[Entry[Item, Result]] = field(default_factory=list)  # left while staged
    is_ending: bool = False  # the batch behind it should be assembled now
    started_at: float | None = None  # None while it is staged behind the batch that runs
    run_s: float = 0.0
    alarm: Alarm | None = None  # rings when the engine counts as hung
    assembly_s: float = 0.0


class Runner(Generic[Item, Batch, Result]):
    """Threads, so that a batch can be assembled while the one before it runs.

    They only read whether a request is still alive, and mark its items as started; `on_start` and
    `on_end` are called on the event loop.

    Args:
        runs_at_once: how many batches the engine takes at a time, each in a thread; the second
            one is prepared by it while the first one runs.
    """

    def __init__(
        self,
        assemble: Callable[[list[Item]], Batch],
        run: Callable[[Batch], Sequence[Result]],
        *,
        parts: Callable[[Batch], Sequence[Item]] | None,
        runs_at_once: int,
        on_start: Callable[[Run[Item, Result]], None],
        on_end: Callable[[Run[Item, Result]], None],
        clock: Callable[[], float],
    ) -> None:
        self._assemble = assemble
        self._run = run
        self._parts = parts
        self._on_start = on_start
        self._on_end = on_end
        self._clock = clock
        self._assembler = ThreadPoolExecutor(1, thread_name_prefix="assemble")
        # One executor for each, in turn, so that `close` can wait for all of them.
        self._engines = [
            ThreadPoolExecutor(1, thread_name_prefix="engine") for _ in range(runs_at_once)
        ]
        self._next_engine = itertools.cycle(self._engines)
        self._ended_at = -math.inf  # the last run

    def submit(self, run: Run[Item, Result], *, is_engine_free: bool) -> None:
        """Assemble the batch now, and run it as soon as the engine is free."""
        loop = asyncio.get_running_loop()
        # Two engines keep the order of their batches, as one thread assembles them.
        if is_engine_free and len(self._engines) == 1:
            next(self._next_engine).submit(self._assemble_and_execute, run, loop)
        else:
            self._assembler.submit(self._assemble_then_submit, run, loop)

    async def close(self) -> None:
        """Finish what was submitted and stop the threads."""
        for executor in (self._assembler, *self._engines):
            last = executor.submit(lambda: None)
            executor.shutdown(wait=False)
            await asyncio.wrap_future(last)

    def abandon(self) -> None:
        """Start nothing more, and do not wait for the threads."""
        for executor in (self._assembler, *self._engines):
            executor.shutdown(wait=False, cancel_futures=True)

    def _assemble_then_submit(
        self, run: Run[Item, Result], loop: asyncio.AbstractEventLoop
    ) -> None:
        batch = self._assemble_timed(run)
        next(self._next_engine).submit(self._execute, run, batch, loop)

    def _assemble_and_execute(
        self, run: Run[Item, Result], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._execute(run, self._assemble_timed(run), loop)

    def _assemble_timed(self, run: Run[Item, Result]) -> Batch | None:
        started = self._clock()
        batch = self._try_assemble(run.entries)
        run.assembly_s = self._clock() - started
        return batch

    def _execute(
        self, run: Run[Item, Result], batch: Batch | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        run.started_at = self._clock()
        alive = [entry for entry in run.entries if _claim(entry, run.started_at)]
        if len(alive) < len(run.entries):
            run.dropped = [entry for entry in run.entries if not entry.is_started]
            run.entries = alive
            batch = self._try_assemble(alive)
        loop.call_soon_threadsafe(self._on_start, run)
        run.outcomes = self._outcomes(alive, batch)
        now = self._clock()
        # Until then, the engine was busy with the batch before.
        run.started_at = max(run.started_at, self._ended_at)
        run.run_s, self._ended_at = now - run.started_at, now
        loop.call_soon_threadsafe(self._on_end, run)

    def _try_assemble(self, entries: list[Entry[Item, Result]]) -> Batch | None:
        try:
            return self._assembled(entries) if entries else None
        except BaseException:
            logger.exception("a batch of %d could not be assembled", len(entries))
            return None

    def _assembled(self, entries: list[Entry[Item, Result]]) -> Batch:
        """The batch of these items; they become parts of it, so memory holds them only once."""
        batch = self._assemble([entry.item for entry in entries])
        if self._parts is not None:
            for entry, item in zip(entries, self._parts(batch), strict=True):
                entry.item = item
        return batch

    def _outcomes(
        self, entries: list[Entry[Item, Result]], batch: Batch | None
    ) -> list[Result | ServiceError]:
        """Run a batch; one that fails is split until the item that fails is alone."""
        if not entries:
            return []
        try:
            if batch is None:
                batch = self._assembled(entries)
            results = list(self._run(batch))
            if len(results) != len(entries):
                raise RuntimeFailure(
                    f"results of a batch: expected {len(entries)}, got {len(results)}"
                )
            return [*results]
        except (
            BaseException
        ) as error:  # SystemExit in this thread would not end the process, only lose the answers
            if len(entries) == 1:
                logger.exception("the engine failed on an item")
                return [_translate(error)]
            logger.warning("a batch of %d failed and is split: %s", len(entries), error)
            half = len(entries) // 2
            return self._outcomes(entries[:half], None) + self._outcomes(entries[half:], None)


def _claim(entry: Entry[Item, Result], now: float) -> bool:
    """Mark an item as started, unless its request was abandoned or is late."""
    entry.is_started = entry.ticket.is_alive and not entry.ticket.is_late(now)
    return entry.is_started


def _translate(error: BaseException) -> EngineFailure:
    """The error for the client, who is shown no messages but those of the engines."""
    if isinstance(error, RuntimeFailure):
        return EngineFailure(str(error))
    return EngineFailure("the engine failed on this image; see the log for details")
