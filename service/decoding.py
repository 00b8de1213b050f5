"""The threads that decode images: bounded memory, fair turns, deadlines.

An image of a few kB may take seconds and hundreds of MB to decode. The memory it needs is
estimated from its header, and images are decoded together only if they fit a budget. Clients take
turns, and so do the requests of one client: a client that sends many large images delays only
itself.

All state belongs to the event loop.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from engines.cores import spread
from service.batching.alarm import Alarm
from service.client_memory import ClientMemory
from service.errors import DeadlineExceeded, NotReady, ServiceError
from service.freed_memory import give_memory_back

Outcome = TypeVar("Outcome")

DECAY = 0.9  # weight that earlier images keep with each new one
FIXED_BYTES = 1 << 20  # smaller images count as this large when time is estimated
TRIMMED_BYTES = 32 << 20  # after a job of that size, memory is given back to the system


class Job(NamedTuple, Generic[Outcome]):
    """Work for a thread, and the memory it takes."""

    work: Callable[[], Outcome]
    num_bytes: int


@dataclass(slots=True, eq=False)
class _Request:
    """The jobs of one request, those that have not started, and what came of the others."""

    client: Hashable
    waiting: deque[tuple[int, Job[Any]]]  # by their places in the answer
    outcomes: list[Any]
    num_left: int
    done: asyncio.Future[None]


class DecodePool:
    """Runs jobs in threads, as many at a time as fit the memory budget.

    Args:
        num_threads: most jobs that run at a time.
        budget_bytes: most memory that running jobs may take together.
        memory: limits what those of one client may take together, and is told of it.
        patience_s: seconds after which a job counts as hung.
        on_hang: called with a message then; it may call `abort`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        num_threads: int,
        budget_bytes: int,
        *,
        memory: ClientMemory | None = None,
        patience_s: float = 100.0,
        on_hang: Callable[[str], None] = lambda message: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience_s = patience_s
        self._on_hang = on_hang
        self._alarms: set[Alarm] = set()  # of running jobs
        self._memory = memory or ClientMemory(budget_bytes, decoding_bytes=budget_bytes)
        self.largest_job_bytes = min(budget_bytes, self._memory.decoding_bytes)
        self._num_threads = num_threads
        self._clock = clock
        self._threads = ThreadPoolExecutor(
            num_threads, thread_name_prefix="decode", initializer=spread()
        )
        self._is_over = False
        self._num_running = 0
        self._free_bytes = budget_bytes
        # In order of turns, for clients and for the requests of each.
        self._clients: OrderedDict[Hashable, OrderedDict[_Request, None]] = OrderedDict()
        self._pending_bytes: dict[Hashable, int] = {}  # per client, waiting and running
        self._learnt_s = 0.0
        self._learnt_bytes = 0.0

    async def run(
        self, jobs: Sequence[Job[Outcome]], *, client: Hashable, deadline: float | None
    ) -> list[Outcome | BaseException]:
        """The outcome of every job, or what it raised, in their order.

        Args:
            jobs: none of them larger than `largest_job_bytes`.
            client: takes turns with other clients.
            deadline: a time on the clock.

        Raises:
            DeadlineExceeded: it passed before all jobs were done. Jobs that have not started by
                then, or when the caller is cancelled, are dropped.
            NotReady: nothing is decoded any more; or the error of `abort`.
        """
        if self._is_over:
            raise NotReady("the service has ended; send the request again", retry_after_s=1)
        request = _Request(
            client,
            waiting=deque(enumerate(jobs)),
            outcomes=[None] * len(jobs),
            num_left=len(jobs),
            done=asyncio.get_running_loop().create_future(),
        )
        self._clients.setdefault(client, OrderedDict())[request] = None
        for job in jobs:
            self._count(client, _weight(job))
        self._start_jobs()
        seconds = None if deadline is None else deadline - self._clock()
        try:
            async with asyncio.timeout(seconds):
                await request.done
            return request.outcomes
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while the images were decoded; send fewer or smaller images"
            ) from None
        finally:
            self._forget(request)

    def expected_wait_s(self, client: Hashable, num_bytes: int) -> float:
        """Expected seconds before the work on `num_bytes` more from this client would begin.

        Every other client gets as many turns meanwhile, as far as it has work. The estimate is 0
        until something has been decoded.
        """
        if not self._learnt_bytes:
            return 0.0
        own = self._pending_bytes.get(client, 0)
        others = sum(
            min(pending, own + num_bytes)
            for other, pending in self._pending_bytes.items()
            if other != client
        )
        return (own + others) * self._learnt_s / self._learnt_bytes / self._num_threads

    def now(self) -> float:
        """The time on the clock, for deadlines."""
        return self._clock()

    def shutdown(self) -> None:
        """Start no further jobs; running ones finish by themselves."""
        self._is_over = True
        for alarm in self._alarms:
            alarm.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def abort(self, error: ServiceError) -> None:
        """Answer everyone who waits with an error, and start no further jobs."""
        self._is_over = True
        for requests in self._clients.values():
            for request in requests:
                if not request.done.done():
                    request.done.set_exception(error)

    def _start_jobs(self) -> None:
        while self._num_running < self._num_threads and not self._is_over:
            found = next(self._startable(), None)
            if found is None:
                return
            self._take_turn(found)
            index, job = found.waiting.popleft()
            self._num_running += 1
            self._free_bytes -= job.num_bytes
            self._memory.decode(found.client, job.num_bytes)
            alarm = Alarm(self._patience_s, self._ring)
            self._alarms.add(alarm)
            finish = partial(self._finish, found, index, job, alarm)
            done = partial(_tell, finish, asyncio.get_running_loop())
            self._threads.submit(_run, job).add_done_callback(done)

    def _ring(self) -> None:
        """A job counts as hung."""
        self._on_hang(f"an image was not decoded within {self._patience_s:g} s")

    def _startable(self) -> Iterator[_Request]:
        """Requests whose next job fits the remaining memory, in order of their turns."""
        for client, requests in self._clients.items():
            left_bytes = self._memory.room_to_decode(client)
            for request in requests:
                if request.waiting and request.waiting[0][1].num_bytes <= min(
                    left_bytes, self._free_bytes
                ):
                    yield request

    def _take_turn(self, request: _Request) -> None:
        self._clients.move_to_end(request.client)
        self._clients[request.client].move_to_end(request)

    def _finish(
        self,
        request: _Request,
        index: int,
        job: Job[Any],
        alarm: Alarm,
        outcome: object,
        seconds: float,
    ) -> None:
        alarm.stop()
        self._alarms.remove(alarm)
        self._num_running -= 1
        self._free_bytes += job.num_bytes
        self._memory.decode(request.client, -job.num_bytes)
        self._count(request.client, -_weight(job))
        if not isinstance(outcome, BaseException):
            self._learnt_s = DECAY * self._learnt_s + seconds
            self._learnt_bytes = DECAY * self._learnt_bytes + _weight(job)
        request.num_left -= 1
        if not request.done.done():  # else nobody waits for it
            request.outcomes[index] = outcome
            if not request.num_left:
                request.done.set_result(None)
        self._start_jobs()

    def _forget(self, request: _Request) -> None:
        for _, job in request.waiting:
            self._count(request.client, -_weight(job))
        request.waiting.clear()
        requests = self._clients[request.client]
        del requests[request]
        if not requests:
            del self._clients[request.client]

    def _count(self, client: Hashable, num_bytes: int) -> None:
        pending = self._pending_bytes.get(client, 0) + num_bytes
        if pending:
            self._pending_bytes[client] = pending
        else:
            self._pending_bytes.pop(client, None)


def _weight(job: Job[Any]) -> int:
    return max(job.num_bytes, FIXED_BYTES)


def _run(job: Job[Outcome]) -> tuple[Outcome, float]:
    started = time.perf_counter()
    try:
        outcome = job.work()
    finally:
        if job.num_bytes > TRIMMED_BYTES:
            give_memory_back()
    return outcome, time.perf_counter() - started


def _tell(
    finish: Callable[[object, float], None],
    loop: asyncio.AbstractEventLoop,
    running: Future[tuple[Any, float]],
) -> None:
    """Tell the event loop that a job is done, from its thread."""
    if running.cancelled() or loop.is_closed():  # the service has ended
        return
    error = running.exception()
    outcome, seconds = (error, 0.0) if error is not None else running.result()
    loop.call_soon_threadsafe(finish, outcome, seconds)
