"""Work-conserving dynamic batching: items of many requests, grouped by bucket, run together.

A request is admitted whole or refused at the door, before any work is spent on it. Its items
wait in the bucket of their shape. Whenever the engine is free, a batch is formed at once from
the bucket whose head has waited longest; nothing waits for a batch to fill up. So that the engine
finds it ready, the next batch is assembled while one runs: as soon as it is full, or else shortly
before the end that is to be expected. The batcher knows no images: it calls `assemble` on the
items of one bucket in one thread, and `run` on the outcome in another.

All state belongs to the event loop. The engine's thread only reads whether a request is still
alive, and marks its items as started.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from service.batching.batch_times import Durations
from service.errors import DeadlineExceeded, EngineFailure, NotReady, Overloaded, ServiceError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Result = TypeVar("Result")

# How early the next batch is assembled, in times of what assembling a full one takes. With 16
# clients, 2 busy cores and batches of up to 16: 73 images/s without it, 80 with 1 or 2.
LEAD = 1.5


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What became of one batch, for the metrics."""

    size: int
    waits_s: list[float]  # of its items, from joining the queue to the start of the run
    run_s: float
    num_failed: int


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Result]):
    """One item of a request."""

    ticket: "Ticket[Item, Result]"
    index: int
    item: Item
    bucket: Hashable
    order: int  # over all buckets; the smallest has waited longest
    queued_at: float
    is_started: bool = False


@dataclass(slots=True, eq=False)
class _Run(Generic[Item, Result]):
    """One batch on its way through the engine."""

    entries: list[_Entry[Item, Result]]
    outcomes: list[Result | ServiceError] = field(default_factory=list)
    dropped: list[_Entry[Item, Result]] = field(default_factory=list)  # left while staged
    is_ending: bool = False  # the batch behind it should be assembled now
    started_at: float | None = None  # None while it is staged behind the batch that runs
    run_s: float = 0.0
    assembly_s: float = 0.0


class Ticket(Generic[Item, Result]):
    """The place of one request: a context manager, so that leaving it always gives it back."""

    def __init__(
        self, batcher: "DynamicBatcher[Item, Any, Result]", count: int, deadline: float | None
    ) -> None:
        self._batcher = batcher
        self.count = count
        self.deadline = deadline  # of the clock
        self.is_alive = True  # someone still waits for the answer
        self.num_held = count  # items that still count as waiting
        self.entries: list[_Entry[Item, Result]] = []
        self.wait_s = 0.0  # the longest of its items
        self.run_s = 0.0
        self._results: dict[int, Result] = {}
        self._answer: asyncio.Future[None] | None = None

    async def run(self, items: Sequence[Item], buckets: Sequence[Hashable]) -> list[Result]:
        """Queue the items, one bucket each, and wait for all results, in their order.

        Raises:
            DeadlineExceeded: the deadline passed before the last item was started.
            EngineFailure: the engine failed on one of the items.
        """
        if len(items) != self.count:
            raise ValueError(f"expected the {self.count} admitted items, got {len(items)}")
        self._answer = asyncio.get_running_loop().create_future()
        timer = self._batcher._enqueue(self, items, buckets)
        try:
            await self._answer
        finally:
            if timer is not None:
                timer.cancel()
        return [self._results[index] for index in range(self.count)]

    def deliver(self, entry: _Entry[Item, Result], outcome: Result | ServiceError) -> None:
        """Take the outcome of one item; the last one, or a failure, answers the request."""
        if isinstance(outcome, ServiceError):
            self.fail(outcome)
        elif self.is_alive:
            self._results[entry.index] = outcome
            if len(self._results) == self.count and self._answer and not self._answer.done():
                self._answer.set_result(None)

    def fail(self, error: ServiceError) -> None:
        """Answer the request with an error and take its waiting items out of the queue."""
        self.leave()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def expire(self) -> None:
        """Fail, unless the engine has started on every item: then the answer is near."""
        if not all(entry.is_started for entry in self.entries):
            self.fail(DeadlineExceeded("the deadline passed while the request was queued"))

    def leave(self) -> None:
        """Give the place back; items that have not started never will."""
        if self.is_alive:
            self.is_alive = False
            self._batcher._forget(self)
            self.entries = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()


class DynamicBatcher(Generic[Item, Batch, Result]):
    """Joins the items of concurrent requests into batches for one engine.

    Args:
        assemble: joins items of one bucket into what `run` takes.
        run: one result for every item, in order.
        max_batch_size: most items in one batch.
        max_queue: most items admitted and not yet started.
        on_batch: told of every batch after it ran, on the event loop.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        assemble: Callable[[list[Item]], Batch],
        run: Callable[[Batch], Sequence[Result]],
        *,
        max_batch_size: int,
        max_queue: int,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._assemble = assemble
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._clock = clock
        self._assembler = ThreadPoolExecutor(1, thread_name_prefix="assemble")
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._buckets: dict[Hashable, OrderedDict[_Entry[Item, Result], None]] = {}
        self._runs: list[_Run[Item, Result]] = []  # the one that runs, then the one staged
        self._num_waiting = 0
        self._num_queued = 0
        self._tickets: set[Ticket[Item, Result]] = set()
        self._is_closing = False
        self._all_left = asyncio.Event()
        self._run_times = Durations()
        self._assembly_times = Durations()

    @property
    def depth(self) -> int:
        """Items admitted and not yet started, those still being decoded included."""
        return self._num_waiting

    def admit(self, count: int, *, deadline_s: float | None = None) -> Ticket[Item, Result]:
        """Reserve places for all `count` items of a request, or for none.

        Raises:
            NotReady: the batcher is draining.
            Overloaded: the queue has no room for all of them, or the wait that is to be
                expected is longer than the deadline.
        """
        if self._is_closing:
            raise NotReady("the service is shutting down; send the request again", retry_after_s=1)
        wait_s = self.expected_wait_s(count)
        if self._num_waiting + count > self._max_queue:
            raise Overloaded(
                f"the queue is full: {self._num_waiting} of {self._max_queue} places are taken, "
                f"the request needs {count}",
                retry_after_s=wait_s,
            )
        if deadline_s is not None and wait_s > deadline_s:
            raise Overloaded(
                f"the expected wait of {wait_s:.1f} s is longer than the deadline of "
                f"{deadline_s:g} s",
                retry_after_s=wait_s - deadline_s,
            )
        deadline = None if deadline_s is None else self._clock() + deadline_s
        ticket: Ticket[Item, Result] = Ticket(self, count, deadline)
        self._tickets.add(ticket)
        self._num_waiting += count
        return ticket

    def expected_wait_s(self, count: int) -> float:
        """Seconds until the last of `count` further items would start."""
        now = self._clock()
        wait_s = 0.0
        for run in self._runs:
            elapsed_s = 0.0 if run.started_at is None else now - run.started_at
            wait_s += max(0.0, self._run_times.expect(len(run.entries)) - elapsed_s)
        num_batches_ahead = (self._num_waiting + count - 1) // self._max_batch_size
        return wait_s + num_batches_ahead * self._run_times.expect(self._max_batch_size)

    async def close(self) -> None:
        """Refuse what comes, finish what was admitted, stop the threads."""
        self._is_closing = True
        if self._tickets:
            await self._all_left.wait()
        await asyncio.to_thread(self._assembler.shutdown)
        await asyncio.to_thread(self._engine.shutdown)

    # --- the queue, on the event loop

    def _enqueue(
        self,
        ticket: Ticket[Item, Result],
        items: Sequence[Item],
        buckets: Sequence[Hashable],
    ) -> asyncio.TimerHandle | None:
        now = self._clock()
        for index, (item, bucket) in enumerate(zip(items, buckets, strict=True)):
            entry = _Entry(ticket, index, item, bucket, self._num_queued, now)
            self._num_queued += 1
            ticket.entries.append(entry)
            self._buckets.setdefault(bucket, OrderedDict())[entry] = None
        self._pump()
        if ticket.deadline is None:
            return None
        delay_s = max(0.0, ticket.deadline - now)
        return asyncio.get_running_loop().call_later(delay_s, ticket.expire)

    def _forget(self, ticket: Ticket[Item, Result]) -> None:
        for entry in ticket.entries:
            self._remove(entry)
        self._num_waiting -= ticket.num_held
        ticket.num_held = 0
        self._tickets.discard(ticket)
        if self._is_closing and not self._tickets:
            self._all_left.set()

    def _remove(self, entry: _Entry[Item, Result]) -> None:
        bucket = self._buckets.get(entry.bucket)
        if bucket is not None:
            bucket.pop(entry, None)
            if not bucket:
                del self._buckets[entry.bucket]

    def _pump(self) -> None:
        """Start what can start: a batch if the engine is free, one behind it when it is time."""
        while len(self._runs) < 2:
            bucket = self._oldest_bucket()
            if bucket is None:
                return
            if self._runs and len(bucket) < self._max_batch_size and not self._runs[0].is_ending:
                return  # it may still grow until the engine is free
            entries = self._take(bucket)
            if entries:
                self._start(entries)

    def _oldest_bucket(self) -> OrderedDict[_Entry[Item, Result], None] | None:
        """The bucket whose head has waited longest, once heads past their deadline have left."""
        now = self._clock()
        while self._buckets:
            heads = [next(iter(bucket)) for bucket in self._buckets.values()]
            head = min(heads, key=lambda entry: entry.order)
            if head.ticket.deadline is None or head.ticket.deadline > now:
                return self._buckets[head.bucket]
            head.ticket.expire()
        return None

    def _take(self, bucket: OrderedDict[_Entry[Item, Result], None]) -> list[_Entry[Item, Result]]:
        now = self._clock()
        taken: list[_Entry[Item, Result]] = []
        while bucket and len(taken) < self._max_batch_size:
            entry = next(iter(bucket))
            if entry.ticket.deadline is not None and entry.ticket.deadline <= now:
                entry.ticket.expire()
                continue
            self._remove(entry)
            entry.ticket.num_held -= 1
            self._num_waiting -= 1
            taken.append(entry)
        # A request that expired above may have had earlier items in this very batch.
        return [entry for entry in taken if entry.ticket.is_alive]

    def _start(self, entries: list[_Entry[Item, Result]]) -> None:
        run = _Run(entries)
        self._runs.append(run)
        loop = asyncio.get_running_loop()
        self._assembler.submit(self._assemble_then_execute, run, loop)

    def _expect_end(self, run: _Run[Item, Result]) -> None:
        """Have the next batch ready, full or not, by the time that this one should end."""
        run_s = self._run_times.expect(len(run.entries))
        lead_s = LEAD * self._assembly_times.expect(self._max_batch_size)
        if run_s:
            asyncio.get_running_loop().call_later(max(0.0, run_s - lead_s), self._near_end, run)

    def _near_end(self, run: _Run[Item, Result]) -> None:
        if run in self._runs:
            run.is_ending = True
            self._pump()

    def _finish(self, run: _Run[Item, Result]) -> None:
        self._runs.remove(run)
        self._pump()  # first of all: the engine is free
        for entry in run.dropped:
            entry.ticket.expire()
        if not run.entries or run.started_at is None:
            return
        num_failed = sum(isinstance(outcome, ServiceError) for outcome in run.outcomes)
        if not num_failed:
            self._run_times.record(len(run.entries), run.run_s)
            self._assembly_times.record(len(run.entries), run.assembly_s)
        waits_s = [run.started_at - entry.queued_at for entry in run.entries]
        for entry, outcome, wait_s in zip(run.entries, run.outcomes, waits_s, strict=True):
            ticket = entry.ticket
            ticket.wait_s = max(ticket.wait_s, wait_s)
            ticket.run_s = max(ticket.run_s, run.run_s)
            ticket.deliver(entry, outcome)
        self._on_batch(BatchReport(len(run.entries), waits_s, run.run_s, num_failed))

    # --- in the threads

    def _assemble_then_execute(
        self, run: _Run[Item, Result], loop: asyncio.AbstractEventLoop
    ) -> None:
        started = self._clock()
        batch = self._try_assemble(run.entries)
        run.assembly_s = self._clock() - started
        self._engine.submit(self._execute, run, batch, loop)

    def _execute(
        self, run: _Run[Item, Result], batch: Batch | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        run.started_at = self._clock()
        alive = [entry for entry in run.entries if self._claim(entry, run.started_at)]
        if len(alive) < len(run.entries):
            run.dropped = [entry for entry in run.entries if not entry.is_started]
            run.entries = alive
            batch = self._try_assemble(alive)
        loop.call_soon_threadsafe(self._expect_end, run)
        run.outcomes = self._outcomes(alive, batch)
        run.run_s = self._clock() - run.started_at
        loop.call_soon_threadsafe(self._finish, run)

    @staticmethod
    def _claim(entry: _Entry[Item, Result], now: float) -> bool:
        deadline = entry.ticket.deadline
        entry.is_started = entry.ticket.is_alive and (deadline is None or deadline > now)
        return entry.is_started

    def _try_assemble(self, entries: list[_Entry[Item, Result]]) -> Batch | None:
        try:
            return self._assemble([entry.item for entry in entries]) if entries else None
        except Exception:
            logger.exception("a batch of %d could not be assembled", len(entries))
            return None

    def _outcomes(
        self, entries: list[_Entry[Item, Result]], batch: Batch | None
    ) -> list[Result | ServiceError]:
        """Run a batch; one that fails is split until the guilty item stands alone."""
        if not entries:
            return []
        try:
            if batch is None:
                batch = self._assemble([entry.item for entry in entries])
            results = list(self._run(batch))
            if len(results) != len(entries):
                raise EngineFailure(f"expected {len(entries)} results, got {len(results)}")
            return [*results]
        except Exception as error:
            if len(entries) == 1:
                logger.exception("the engine failed on an item")
                if isinstance(error, ServiceError):
                    return [error]
                return [EngineFailure("the engine failed on this image; the log says more")]
            logger.warning("a batch of %d failed and is split: %s", len(entries), error)
            half = len(entries) // 2
            return self._outcomes(entries[:half], None) + self._outcomes(entries[half:], None)
