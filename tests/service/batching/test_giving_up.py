"""What is left of requests: everyone is answered when the engine is given up; nothing is kept."""

import asyncio
import threading
import weakref

import pytest

from service.batching.batcher import DynamicBatcher, Patience
from service.errors import NotReady
from tests.fakes import FakeClock
from tests.service.batching.shouting import (
    MAX_BATCH_SIZE,
    MAX_QUEUE,
    Batcher,
    Shouter,
    begin,
    hold_engine,
    say,
    settle,
)

pytestmark = pytest.mark.anyio


async def test_giving_up_answers_everyone_and_waits_for_nothing(
    batcher: Batcher, shouter: Shouter
) -> None:
    running = await hold_engine(batcher, shouter)
    decoding = batcher.admit(1)
    requests = [running, begin(batcher, "one"), begin(batcher, "two", "three")]
    await settle()

    batcher.abort(NotReady("the engine is gone"))
    answers = await asyncio.gather(*requests, return_exceptions=True)
    with pytest.raises(NotReady):
        batcher.admit(1)
    await batcher.close()

    assert [repr(answer) for answer in answers] == ["NotReady('the engine is gone')"] * 3
    with pytest.raises(NotReady, match="the engine is gone"):
        await decoding.run(["decoded"], ["a"])
    assert batcher.depth == 0


async def test_giving_up_ends_a_stop_that_waits_for_the_engine(
    batcher: Batcher, shouter: Shouter
) -> None:
    gone = await hold_engine(batcher, shouter)
    gone.cancel()
    closing = asyncio.ensure_future(batcher.close())
    await settle()

    batcher.abort(NotReady("the engine is gone"))
    async with asyncio.timeout(10):
        await closing


async def test_no_thread_is_left_of_an_engine_that_was_given_up(
    batcher: Batcher, shouter: Shouter
) -> None:
    others = {*threading.enumerate()}
    running = await hold_engine(batcher, shouter)
    behind = begin(batcher, *["word"] * MAX_BATCH_SIZE)  # assembled meanwhile
    await settle()
    threads = [
        thread
        for thread in {*threading.enumerate()} - others
        if thread.name.startswith(("assemble", "engine"))
    ]

    batcher.abort(NotReady("the engine is gone"))
    shouter.gate.open()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    for request in (running, behind):
        with pytest.raises(NotReady):
            await request

    assert len(threads) == 2
    assert not any(thread.is_alive() for thread in threads)


class Word(str):
    """Text that can be watched."""


async def test_an_answered_request_is_not_kept_in_memory(
    batcher: Batcher, shouter: Shouter
) -> None:
    word, shape = Word("large"), Word("a shape that does not come again")
    with batcher.admit(1, deadline_s=60) as ticket:
        assert await ticket.run([word], [shape]) == ["LARGE"]
    kept: list[weakref.ref[object]] = [weakref.ref(one) for one in (word, shape, ticket)]

    del word, shape, ticket
    await say(batcher, "next")  # so the threads are done with what came before
    shouter.batches.clear()
    await settle()

    assert [reference() for reference in kept] == [None, None, None]


@pytest.mark.parametrize(
    ("num_steps", "step_s", "is_hung"),
    [(790, 0.01, False), (820, 0.01, True), (1, 60, False)],
    ids=["in time", "hung", "the process was paused"],
)
async def test_a_batch_counts_as_hung_after_a_multiple_of_its_usual_time(
    shouter: Shouter,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    num_steps: int,
    step_s: float,
    is_hung: bool,
) -> None:
    hung: list[str] = []
    batcher: Batcher = DynamicBatcher(
        *(shouter.assemble, shouter.run),
        max_batch_size=MAX_BATCH_SIZE,
        max_queue=MAX_QUEUE,
        patience=Patience(factor=4, floor_s=1),
        on_hang=hung.append,
        clock=clock,
    )
    loop = asyncio.get_running_loop()
    timers = FakeClock(loop.time())
    monkeypatch.setattr(loop, "time", timers)
    usual = await hold_engine(batcher, shouter)
    clock.advance(2)
    shouter.gate.open()
    await usual

    running = await hold_engine(batcher, shouter)
    await settle()
    for _ in range(num_steps):
        timers.advance(step_s)
        await asyncio.sleep(0)
    shouter.gate.open()
    await running
    await batcher.close()

    assert hung == ["the engine has not ended a batch of 1 within 8.0 s"] * is_hung


async def test_a_batch_that_has_ended_never_counts_as_hung(
    shouter: Shouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung: list[str] = []
    batcher: Batcher = DynamicBatcher(
        *(shouter.assemble, shouter.run),
        max_batch_size=MAX_BATCH_SIZE,
        max_queue=MAX_QUEUE,
        patience=Patience(factor=1, floor_s=1),
        on_hang=hung.append,
    )
    loop = asyncio.get_running_loop()
    timers = FakeClock(loop.time())
    monkeypatch.setattr(loop, "time", timers)
    first = await hold_engine(batcher, shouter)
    second = begin(batcher, *"1234")
    await settle()

    shouter.gate.open()
    shouter.gate.wait_for_arrival()  # so the loop sees the end of one and the start of the other
    await asyncio.gather(first, second)
    for _ in range(100):
        timers.advance(1)
        await asyncio.sleep(0)
    await batcher.close()

    assert hung == []
