"""An engine that takes in a batch while it runs the one before."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.batching.batcher import BatchReport, DynamicBatcher, Patience
from tests.fakes import FakeClock, Gate
from tests.service.batching.shouting import (
    MAX_BATCH_SIZE,
    MAX_QUEUE,
    Batcher,
    Shouter,
    begin,
    hold_engine,
    reach,
    settle,
)

pytestmark = pytest.mark.anyio

FULL = "1234"


@pytest.fixture
def second() -> Gate:
    """Holds full batches, where the shouter's own gate holds all."""
    gate = Gate()
    gate.shut()
    return gate


@pytest.fixture
def hangs() -> list[str]:
    return []


@pytest.fixture
async def batcher(
    shouter: Shouter, second: Gate, clock: FakeClock, reports: list[BatchReport], hangs: list[str]
) -> AsyncIterator[Batcher]:
    def run(batch: tuple[str, ...]) -> list[str]:
        if len(batch) == len(FULL):
            shouter.batches.append(batch)
            second.pass_through()
            return list(batch)
        return shouter.run(batch)

    batcher: Batcher = DynamicBatcher(
        *(shouter.assemble, run),
        max_batch_size=MAX_BATCH_SIZE,
        max_queue=MAX_QUEUE,
        runs_at_once=2,
        patience=Patience(10, 0.05),
        on_batch=reports.append,
        on_hang=hangs.append,
        clock=clock,
    )
    yield batcher
    shouter.gate.open()
    second.open()
    await batcher.close()


async def test_it_has_the_next_batch_early_and_no_third(
    batcher: Batcher, shouter: Shouter, second: Gate
) -> None:
    await hold_engine(batcher, shouter)
    requests = [begin(batcher, *FULL) for _ in range(2)]
    await reach(second.wait_for_arrival)
    await settle()

    assert shouter.batches == [("blocker",), tuple(FULL)]
    second.open()
    shouter.gate.open()
    assert await asyncio.gather(*requests) == [list(FULL)] * 2


async def test_the_time_of_a_batch_begins_when_the_one_before_has_ended(
    batcher: Batcher, shouter: Shouter, second: Gate, clock: FakeClock, reports: list[BatchReport]
) -> None:
    blocker = await hold_engine(batcher, shouter)
    request = begin(batcher, *FULL)
    await reach(second.wait_for_arrival)

    clock.advance(5)
    shouter.gate.open()
    await blocker
    clock.advance(3)
    second.open()
    await request

    assert [(report.run_s, report.waits_s[0]) for report in reports] == [(5, 0), (3, 5)]


async def test_a_batch_that_the_engine_has_early_still_takes_all_of_its_time(
    batcher: Batcher, shouter: Shouter, second: Gate, clock: FakeClock
) -> None:
    blocker = await hold_engine(batcher, shouter)
    clock.advance(5)
    shouter.gate.open()
    await blocker  # a batch of one takes 5 s
    request = begin(batcher, *FULL)
    await reach(second.wait_for_arrival)
    clock.advance(3)
    second.open()
    await request  # and a full one takes 3 s
    second.shut()
    await hold_engine(batcher, shouter)
    begin(batcher, *FULL)
    await reach(second.wait_for_arrival)

    clock.advance(1)

    assert batcher.expected_wait_s(1) == 4 + 3


async def test_the_second_batch_counts_as_hung_only_while_it_runs(
    batcher: Batcher,
    shouter: Shouter,
    second: Gate,
    hangs: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    timers = FakeClock(loop.time())
    monkeypatch.setattr(loop, "time", timers)

    async def pass_limit() -> None:
        for _ in range(20):
            timers.advance(0.01)
            await asyncio.sleep(0)

    blocker = await hold_engine(batcher, shouter)
    begin(batcher, *FULL)
    await reach(second.wait_for_arrival)
    await pass_limit()
    sizes_while_first = [hang.split("batch of ")[1][0] for hang in hangs]
    shouter.gate.open()
    await blocker
    await pass_limit()

    assert sizes_while_first == ["1"]
    assert [hang.split("batch of ")[1][0] for hang in hangs] == ["1", "4"]


async def test_closing_waits_for_both(batcher: Batcher, shouter: Shouter, second: Gate) -> None:
    await hold_engine(batcher, shouter)
    request = begin(batcher, *FULL)
    await reach(second.wait_for_arrival)
    request.cancel()
    closing = asyncio.ensure_future(batcher.close())
    shouter.gate.open()
    await asyncio.sleep(0.05)

    assert not closing.done()
    second.open()
    await closing
