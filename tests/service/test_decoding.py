"""The pool that decodes: its budget of memory, the turns of clients, deadlines."""

import asyncio
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client_memory import ClientMemory
from service.decoding import DecodePool, Job
from service.errors import DeadlineExceeded, NotReady
from tests.fakes import FakeClock, Gate

pytestmark = pytest.mark.anyio

MB = 1_000_000


class Diary:
    """Work that is written down as it is done, once its gate is open."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done: list[str] = []
        self.gate = Gate()

    def job(self, name: str, num_bytes: int = MB) -> Job[str]:
        return Job(lambda: self._do(name), num_bytes)

    def _do(self, name: str) -> str:
        self.begun.append(name)
        self.gate.pass_through()
        self.done.append(name)
        return name.upper()


@pytest.fixture
def diary() -> Iterator[Diary]:
    diary = Diary()
    diary.gate.shut()
    yield diary
    diary.gate.open()


def submit(
    pool: DecodePool, jobs: list[Job[str]], client: str, deadline: float | None = None
) -> asyncio.Task[list[str | BaseException]]:
    return asyncio.create_task(pool.run(jobs, client=client, deadline=deadline))


async def settle() -> None:
    """Let the tasks run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def resident_mb() -> float:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MB


async def test_outcomes_come_in_the_order_of_their_jobs(diary: Diary) -> None:
    diary.gate.open()
    pool = DecodePool(2, 10 * MB)

    outcomes = await pool.run([diary.job(name) for name in "abc"], client="x", deadline=None)

    assert outcomes == ["A", "B", "C"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be given cores")
async def test_threads_that_decode_cannot_all_be_woken_on_one_core() -> None:
    cores = sorted(os.sched_getaffinity(0))
    pool = DecodePool(2, 10 * MB)
    together = threading.Barrier(2)

    def work() -> list[int]:
        together.wait(10)
        return sorted(os.sched_getaffinity(0))

    used = await pool.run([Job(work, MB)] * 2, client="x", deadline=None)

    assert sorted(used, key=str) == sorted((cores[::2], cores[1::2] or cores), key=str)
    pool.shutdown()


async def test_a_job_that_fails_leaves_the_others_alone(diary: Diary) -> None:
    diary.gate.open()
    pool = DecodePool(1, 10 * MB)
    fault: Job[str] = Job(lambda: str(1 // 0), MB)

    outcomes = await pool.run([fault, diary.job("b")], client="x", deadline=None)

    assert isinstance(outcomes[0], ZeroDivisionError)
    assert outcomes[1] == "B"


async def test_clients_take_turns_and_so_do_the_requests_of_one(diary: Diary) -> None:
    pool = DecodePool(1, 10 * MB)
    tasks = [
        submit(pool, [diary.job(f"a{index}") for index in range(4)], "attacker"),
        submit(pool, [diary.job("b0")], "attacker"),
        submit(pool, [diary.job("c0"), diary.job("c1")], "other"),
    ]
    await settle()

    diary.gate.open()
    await asyncio.gather(*tasks)

    assert diary.done == ["a0", "a1", "c0", "b0", "c1", "a2", "a3"]


async def test_no_more_is_decoded_at_a_time_than_the_budget_has_memory_for(diary: Diary) -> None:
    pool = DecodePool(3, 10 * MB)
    large = submit(pool, [diary.job("large", 8 * MB)], "a")
    second = submit(pool, [diary.job("next", 8 * MB)], "b")
    small = submit(pool, [diary.job("small", 2 * MB)], "c")
    await settle()
    diary.gate.wait_for_arrival()
    diary.gate.wait_for_arrival()  # the small one beside the large one
    running = pool._num_running

    diary.gate.open()
    await asyncio.gather(large, second, small)

    assert running == 2
    assert diary.begun[-1] == "next"


async def test_a_deadline_that_passes_while_images_are_decoded_is_kept(diary: Diary) -> None:
    clock = FakeClock()
    pool = DecodePool(1, 10 * MB, clock=clock)
    late = submit(pool, [diary.job("a"), diary.job("b")], "x", deadline=clock() + 0.05)

    with pytest.raises(DeadlineExceeded, match="while the images were decoded"):
        await late
    diary.gate.open()
    await pool.run([diary.job("c")], client="x", deadline=None)

    assert diary.done == ["a", "c"]


async def test_jobs_of_a_request_that_was_cancelled_are_not_started(diary: Diary) -> None:
    pool = DecodePool(1, 10 * MB)
    gone = submit(pool, [diary.job("a"), diary.job("b")], "x")
    await settle()

    gone.cancel()
    await settle()
    diary.gate.open()
    await pool.run([diary.job("c")], client="y", deadline=None)

    assert diary.done == ["a", "c"]
    assert pool.expected_wait_s("y", MB) == 0  # nobody waits for what was not started


async def test_no_job_starts_once_the_pool_is_shut_down(diary: Diary) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    pool = DecodePool(1, 10 * MB)
    left = submit(pool, [diary.job("a"), diary.job("b")], "x")
    await asyncio.to_thread(diary.gate.wait_for_arrival)

    pool.shutdown()
    diary.gate.open()
    while not diary.done:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)

    assert (diary.begun, faults, left.done()) == (["a"], [], False)
    left.cancel()


def test_a_job_that_outlives_the_event_loop_is_no_fault(
    diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> DecodePool:
        pool = DecodePool(1, 10 * MB)
        left = submit(pool, [diary.job("a")], "x")
        await asyncio.to_thread(diary.gate.wait_for_arrival)
        left.cancel()
        return pool

    pool = asyncio.run(leave())
    diary.gate.open()
    pool._threads.shutdown(wait=True)

    assert (diary.done, caplog.messages) == (["a"], [])


async def test_the_pool_goes_on_after_a_job_that_failed_and_that_nobody_waits_for(
    diary: Diary,
) -> None:
    def fail() -> str:
        diary.gate.pass_through()
        raise ValueError

    pool = DecodePool(1, 10 * MB)
    gone = submit(pool, [Job(fail, MB)], "x")
    await asyncio.to_thread(diary.gate.wait_for_arrival)
    gone.cancel()
    following = submit(pool, [diary.job("next")], "y")
    await settle()

    diary.gate.open()

    assert await following == ["NEXT"]


def test_the_largest_job_is_one_that_fits_the_budgets_of_all_and_of_a_client() -> None:
    memory = ClientMemory(3 * MB, decoding_bytes=2 * MB)

    sizes = [DecodePool(1, n * MB, memory=memory).largest_job_bytes for n in (1, 4)]

    assert sizes == [MB, 2 * MB]


async def test_a_client_waits_for_its_own_images_and_for_as_much_of_others(diary: Diary) -> None:
    pool = DecodePool(1, 100 * MB)
    diary.gate.open()
    await pool.run([diary.job("learnt", 10 * MB)], client="x", deadline=None)
    diary.gate.shut()
    task = submit(pool, [diary.job("a", 40 * MB), diary.job("b", 40 * MB)], "attacker")
    await settle()

    own_s = pool.expected_wait_s("attacker", 10 * MB)
    other_s = pool.expected_wait_s("other", 10 * MB)

    assert own_s == pytest.approx(8 * other_s)
    assert other_s > 0
    diary.gate.open()
    await task
    assert pool.expected_wait_s("attacker", 10 * MB) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_memory_of_a_large_job_is_given_back_to_the_system() -> None:
    kept: list[bytes] = []

    def work() -> None:
        freed = [b"x" * 60_000 for _ in range(1000)]
        kept.append(freed.pop())  # the last: what lies before it is not given back by itself

    before_mb = resident_mb()
    await DecodePool(1, 100 * MB).run([Job(work, 64 * MB)], client="x", deadline=None)

    assert resident_mb() - before_mb < 30


async def test_one_client_may_use_only_its_part_of_the_memory_at_a_time(diary: Diary) -> None:
    memory = ClientMemory(3 * MB, decoding_bytes=2 * MB)
    pool = DecodePool(4, 4 * MB, memory=memory)

    first = submit(pool, [diary.job(name) for name in "abcd"], "greedy")
    second = submit(pool, [diary.job("x")], "modest")
    for _ in range(3):
        await asyncio.to_thread(diary.gate.wait_for_arrival)
    started = sorted(diary.begun)
    diary.gate.open()

    assert started == ["a", "b", "x"]
    assert await first == list("ABCD")
    assert await second == ["X"]


async def test_a_job_that_hangs_is_told_of_once_and_everyone_may_be_answered(diary: Diary) -> None:
    told: list[str] = []
    hung = asyncio.Event()

    def on_hang(message: str) -> None:
        told.append(message)
        pool.abort(NotReady("given up"))
        hung.set()

    pool = DecodePool(1, 10 * MB, patience_s=0.1, on_hang=on_hang)
    requests = [submit(pool, [diary.job(name)], name) for name in "ab"]
    async with asyncio.timeout(10):
        await hung.wait()
    answers = await asyncio.gather(*requests, return_exceptions=True)
    with pytest.raises(NotReady):
        await submit(pool, [diary.job("late")], "c")
    diary.gate.open()
    await asyncio.sleep(0.2)

    assert told == ["an image was not decoded within 0.1 s"]
    assert [str(answer) for answer in answers] == ["given up"] * 2
    assert diary.begun == ["a"]


async def test_jobs_that_end_in_time_ring_no_alarm() -> None:
    told: list[str] = []
    pool = DecodePool(1, 10 * MB, patience_s=0.5, on_hang=told.append)

    for _ in range(8):
        await pool.run([Job(lambda: time.sleep(0.05), MB)] * 2, client="x", deadline=None)

    assert told == []
