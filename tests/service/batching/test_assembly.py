"""When the next batch is assembled: shortly before the engine should be free."""

import asyncio

import pytest

from service.batching.batcher import DynamicBatcher
from tests.fakes import FakeClock
from tests.service.batching.shouting import (
    MAX_BATCH_SIZE,
    MAX_QUEUE,
    Batcher,
    Shouter,
    begin,
    hold_engine,
    reach,
    say,
    settle,
)

pytestmark = pytest.mark.anyio


async def test_a_full_batch_is_assembled_while_the_engine_still_runs(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)
    await reach(shouter.assembled.wait_for_arrival)

    request = begin(batcher, "1", "2", "3", "4")
    await reach(shouter.assembled.wait_for_arrival)

    assert shouter.batches == [("blocker",)]
    shouter.gate.open()
    assert await request == ["1", "2", "3", "4"]


async def test_a_batch_that_is_not_full_may_grow_until_the_engine_is_free(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)
    early = begin(batcher, "early")
    await settle()
    late = begin(batcher, "late")
    await settle()

    shouter.gate.open()
    await asyncio.gather(early, late)

    assert shouter.batches == [("blocker",), ("early", "late")]


async def test_a_batch_is_assembled_shortly_before_the_engine_should_be_free(
    batcher: Batcher, shouter: Shouter, clock: FakeClock
) -> None:
    blocker = await hold_engine(batcher, shouter)
    clock.advance(0.02)
    shouter.gate.open()
    await blocker  # the next one is expected to take 0.02 s as well
    await hold_engine(batcher, shouter)
    for _ in "12":
        await reach(shouter.assembled.wait_for_arrival)

    request = begin(batcher, "not", "full")
    await reach(shouter.assembled.wait_for_arrival)

    assert shouter.words == ["blocker", "blocker"]
    shouter.gate.open()
    assert await request == ["NOT", "FULL"]


async def hold_slow_engine(shouter: Shouter, clock: FakeClock, *, run_s: float) -> Batcher:
    """A batcher that takes 100 s to assemble a batch, and whose engine has begun with one."""

    def assemble(words: list[str]) -> tuple[str, ...]:
        clock.advance(100)
        return shouter.assemble(words)

    def run(batch: tuple[str, ...]) -> list[str]:
        words = shouter.run(batch)
        clock.advance(run_s)
        return words

    batcher: Batcher = DynamicBatcher(
        assemble, run, max_batch_size=MAX_BATCH_SIZE, max_queue=MAX_QUEUE, clock=clock
    )
    await say(batcher, "first")  # the next ones are expected to take as long
    await hold_engine(batcher, shouter)
    for _ in "12":
        await reach(shouter.assembled.wait_for_arrival)
    return batcher


async def test_a_batch_that_takes_long_to_assemble_is_begun_in_time(
    shouter: Shouter, clock: FakeClock
) -> None:
    batcher = await hold_slow_engine(shouter, clock, run_s=130)

    request = begin(batcher, "not", "full")
    await reach(shouter.assembled.wait_for_arrival)

    assert not {"not", "full"} & {*shouter.words}
    shouter.gate.open()
    assert await request == ["NOT", "FULL"]
    await batcher.close()


async def test_a_batch_is_not_begun_long_before_the_engine_should_be_free(
    shouter: Shouter, clock: FakeClock
) -> None:
    batcher = await hold_slow_engine(shouter, clock, run_s=1000)
    early = begin(batcher, "early")
    await settle()
    late = begin(batcher, "late")
    await settle()

    shouter.gate.open()
    await asyncio.gather(early, late)

    assert shouter.batches[-1] == ("early", "late")
    await batcher.close()
