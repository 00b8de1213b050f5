"""Work-conserving dynamic batching: items of many requests, grouped by bucket, run together.

A request is admitted as a whole or refused, before any work is spent on it. Its items wait in the
bucket of their shape. Whenever the engine is free, a batch is formed at once from the bucket of
the item whose turn it is. There is one exception: if clients usually send their next item right
after an answer, the batch waits for those just answered, as long as that takes less time than
another run would (see `Returns`). The next batch is assembled while one runs, as soon as it is full
or shortly before the running one should end, so that it is ready for the engine. The batcher knows
nothing about images: it calls `assemble` on the items of one bucket in one thread, and `run` on the
result in another.

All state belongs to the event loop.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple

from service.batching.alarm import Alarm
from service.batching.batch_times import Durations, Line
from service.batching.item_queue import ItemQueue
from service.batching.returns import Returns
from service.batching.runner import Batch, Run, Runner
from service.batching.ticket import Item, Result, Ticket
from service.errors import NotReady, Overloaded, ServiceError

# How early the next batch is assembled, as a multiple of the time that assembling a full one takes.
# With 16 clients, 2 busy cores and batches of up to 16: 73 images/s at 0, 80 at 1 or 2.
LEAD = 1.5
# Or the event loop and the engine's thread wake at once, and one waits for the other.
LEAST_LEAD_S = 0.002


@dataclass(frozen=True, slots=True)
class BatchReport:
    """How one batch went, for the metrics."""

    size: int
    waits_s: list[float]  # one per item, from joining the queue to the start of the run
    run_s: float
    num_failed: int


class Patience(NamedTuple):
    """How long the engine may take for a batch before it counts as hung."""

    factor: float = 10.0  # times the usual duration of such a batch
    floor_s: float = 60.0

    def limit_s(self, usual_s: float) -> float:
        """The limit for a batch that usually takes `usual_s`, which is 0 where it is not known."""
        return max(self.floor_s, self.factor * usual_s)


DEFAULT_PATIENCE = Patience()


class DynamicBatcher(Generic[Item, Batch, Result]):
    """Joins the items of concurrent requests into batches for one engine.

    Args:
        assemble: joins items of one bucket into what `run` takes.
        run: one result for every item, in order.
        max_batch_size: most items in one batch.
        max_queue: most items admitted and not yet started.
        parts: splits a batch into its items, as views of it; without it, the items are kept too.
        runs_at_once: how many threads may be in `run` at a time; 2 if the engine can take in a
            batch while it runs the one before.
        depth_of_all: counts such items in all batchers that share max_queue; by default its own.
        patience: how long one run of the engine may take.
        on_batch: called on the event loop after every batch, before its answers are sent.
        on_hang: called with a message when a run counts as hung; it may call `abort`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        assemble: Callable[[list[Item]], Batch],
        run: Callable[[Batch], Sequence[Result]],
        *,
        max_batch_size: int,
        max_queue: int,
        parts: Callable[[Batch], Sequence[Item]] | None = None,
        runs_at_once: int = 1,
        depth_of_all: Callable[[], int] | None = None,
        patience: Patience = DEFAULT_PATIENCE,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_hang: Callable[[str], None] = lambda message: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._depth_of_all = depth_of_all or (lambda: self.depth)
        self._patience = patience
        self._on_batch = on_batch
        self._on_hang = on_hang
        self._clock = clock
        self._queue: ItemQueue[Item, Result] = ItemQueue(self._arrive, clock=clock)
        self._runner: Runner[Item, Batch, Result] = Runner(
            assemble,
            run,
            parts=parts,
            runs_at_once=runs_at_once,
            on_start=self._begin,
            on_end=self._finish,
            clock=clock,
        )
        self._runs: list[Run[Item, Result]] = []  # the running batch, then the next one
        self._returns = Returns()
        self._wait: asyncio.TimerHandle | None = None  # for clients that should come back
        self._is_closing = False
        self._aborted = asyncio.Event()
        self._run_times = Durations()
        self._assembly_s = Line()  # by size

    @property
    def depth(self) -> int:
        """Items admitted and not yet started, including those still being decoded."""
        return self._queue.depth

    def admit(
        self, count: int, *, client: Hashable = None, deadline_s: float | None = None
    ) -> Ticket[Item, Result]:
        """Reserve places for all `count` items of a request, or for none.

        Clients take turns. Where the queue is full, the newest requests of the client that holds
        most give way to one of a client that would hold less, if that makes room for it.

        Raises:
            NotReady, Overloaded: see `check`.
        """
        self.check(count, client=client, deadline_s=deadline_s)
        for ticket in self._giving_way(count, client) or ():
            ticket.fail(
                Overloaded(
                    "the queue is full, and the request gave way to one of a client with fewer "
                    "images in it; send it again, or less at a time",
                    retry_after_s=self.expected_wait_s(count, client=ticket.client),
                )
            )
        deadline = None if deadline_s is None else self._clock() + deadline_s
        return self._queue.admit(count, client=client, deadline=deadline)

    def check(
        self, count: int, *, client: Hashable = None, deadline_s: float | None = None
    ) -> None:
        """Refuse a request that could not be admitted now.

        Raises:
            NotReady: the batcher is draining.
            Overloaded: the queue has no room for all of its items, or the wait that is to be
                expected is longer than the deadline.
        """
        if self._is_closing:
            raise NotReady("the service is shutting down; send the request again", retry_after_s=1)
        if self._giving_way(count, client) is None:
            raise Overloaded(
                f"the queue is full (places taken: {self._depth_of_all()} of {self._max_queue}; "
                f"needed: {count})",
                retry_after_s=self.expected_wait_s(count, client=client),
            )
        wait_s = self.expected_wait_s(count, client=client)
        if deadline_s is not None and wait_s > deadline_s:
            raise Overloaded(
                f"the expected wait of {wait_s:.1f} s is longer than the deadline of "
                f"{deadline_s:g} s",
                retry_after_s=wait_s - deadline_s,
            )

    def _giving_way(self, count: int, client: Hashable) -> list[Ticket[Item, Result]] | None:
        """The requests that make room for `count` items; None if there is no room for them."""
        num_missing = self._depth_of_all() + count - self._max_queue
        return self._queue.giving_way(client, count, num_missing=num_missing)

    def expected_wait_s(self, count: int, *, client: Hashable = None) -> float:
        """Seconds until the last of `count` further items of a client would start."""
        now = self._clock()
        wait_s = 0.0
        for run in self._runs:
            elapsed_s = 0.0
            if run is self._runs[0] and run.started_at is not None:
                elapsed_s = now - run.started_at
            wait_s += max(0.0, self._run_times.expect(len(run.entries)) - elapsed_s)
        num_batches_ahead = self._queue.num_ahead(client, count) // self._max_batch_size
        return wait_s + num_batches_ahead * self._run_times.expect(self._max_batch_size)

    async def close(self) -> None:
        """Refuse new requests, finish admitted ones, stop the threads; `abort` cuts it short."""
        self._is_closing = True
        ended = asyncio.ensure_future(self._end())
        aborted = asyncio.ensure_future(self._aborted.wait())
        await asyncio.wait({ended, aborted}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, aborted):
            task.cancel()

    async def _end(self) -> None:
        await self._queue.wait_until_all_left()
        await self._runner.close()

    def abort(self, error: ServiceError) -> None:
        """Answer every request with an error, refuse new ones, and wait for nothing."""
        self._is_closing = True
        self._queue.fail_all(error)
        self._runner.abandon()
        self._aborted.set()

    def _arrive(self, count: int) -> None:
        self._returns.arrive(count, self._clock())
        self._pump()

    def _pump(self) -> None:
        """Start a batch if the engine is free, and stage the next one when it is time."""
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        while len(self._runs) < 2:
            bucket = self._queue.oldest_bucket()
            if bucket is None:
                return
            is_full = self._queue.num_in(bucket) >= self._max_batch_size
            if not is_full and self._may_grow(bucket):
                return
            entries = self._queue.take(bucket, self._max_batch_size)
            if entries:
                run = Run(entries)
                self._runner.submit(run, is_engine_free=not self._runs)
                self._runs.append(run)

    def _may_grow(self, bucket: Hashable) -> bool:
        """Whether a batch that is not full should wait for more; sets the timer for its end."""
        if self._runs:
            running = self._runs[0]
            if not running.is_ending:
                return True  # until the engine is free
            num_missing = sum(entry.bucket == bucket for entry in running.entries)
            return self._wait_that_pays_s(bucket, self._returns.share_of(num_missing)) > 0
        wait_s = self._wait_that_pays_s(bucket, self._returns.missing(bucket))
        left_s = wait_s - self._returns.elapsed_s(self._clock())
        if left_s <= 0:
            return False
        self._wait = asyncio.get_running_loop().call_later(left_s, self._give_up)
        return True

    def _give_up(self) -> None:
        """Stop waiting for clients that have not come back."""
        self._returns.give_up(self._clock())
        self._pump()

    def _wait_that_pays_s(self, bucket: Hashable, num_missing: int) -> float:
        """How many seconds after an answer to wait for clients; 0 if waiting does not pay.

        It pays if all of them, together, come back in less time than an additional run costs,
        whatever its size. Then one that is late is waited for half as long again, but no longer
        than that run would take.
        """
        if not num_missing or self._is_closing or self._queue.num_buckets > 1:
            return 0.0
        size = min(self._queue.num_in(bucket) + num_missing, self._max_batch_size)
        saved_s = self._run_times.fixed_s - self._assembly_s.at(size)
        delay_s = self._returns.delay_s(size)
        return max(min(1.5 * delay_s, saved_s), saved_s / 2) if delay_s < saved_s else 0.0

    def _begin(self, run: Run[Item, Result]) -> None:
        """Follow a run that the engine works on; one behind another is followed later."""
        if run is self._runs[0]:
            self._expect_end(run)

    def _expect_end(self, run: Run[Item, Result]) -> None:
        """Time the next batch to be ready when this one should end; set the alarm for a hang."""
        if run.alarm is not None:  # its start was noticed twice
            return
        run_s = self._run_times.expect(len(run.entries))
        limit_s = self._patience.limit_s(run_s)
        run.alarm = Alarm(limit_s, partial(self._ring, run, limit_s))
        lead_s = max(LEAST_LEAD_S, LEAD * self._assembly_s.at(self._max_batch_size))
        if run_s:
            asyncio.get_running_loop().call_later(max(0.0, run_s - lead_s), self._near_end, run)

    def _ring(self, run: Run[Item, Result], limit_s: float) -> None:
        """The run counts as hung."""
        self._on_hang(
            f"the engine has not ended a batch of {len(run.entries)} within {limit_s:.1f} s"
        )

    def _near_end(self, run: Run[Item, Result]) -> None:
        run.is_ending = True
        self._pump()

    def _finish(self, run: Run[Item, Result]) -> None:
        if run.alarm is not None:
            run.alarm.stop()
        self._runs.remove(run)
        if self._runs and self._runs[0].started_at is not None:
            self._begin(self._runs[0])
        if run.entries:
            self._returns.answer(len(run.entries), run.entries[0].bucket, now=self._clock())
        self._pump()  # first, because the engine is free
        for entry in run.dropped:
            entry.ticket.expire()
        if not run.entries or run.started_at is None:
            return
        num_failed = sum(isinstance(outcome, ServiceError) for outcome in run.outcomes)
        if not num_failed:
            self._run_times.record(len(run.entries), run.run_s)
            self._assembly_s.add(len(run.entries), run.assembly_s)
        waits_s = [run.started_at - entry.queued_at for entry in run.entries]
        for entry, outcome, wait_s in zip(run.entries, run.outcomes, waits_s, strict=True):
            ticket = entry.ticket
            ticket.wait_s = wait_s  # each batch starts after the ones before
            ticket.run_s = max(ticket.run_s, run.run_s)
            ticket.deliver(entry, outcome)
        self._on_batch(BatchReport(len(run.entries), waits_s, run.run_s, num_failed))
