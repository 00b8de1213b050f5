"""A batcher of words, and a clock that the test moves."""

from collections.abc import AsyncIterator

import pytest

from service.batching.batcher import BatchReport, DynamicBatcher
from tests.fakes import FakeClock
from tests.service.batching.shouting import MAX_BATCH_SIZE, MAX_QUEUE, Batcher, Shouter


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def shouter() -> Shouter:
    return Shouter()


@pytest.fixture
def reports() -> list[BatchReport]:
    return []


@pytest.fixture
async def batcher(
    shouter: Shouter, clock: FakeClock, reports: list[BatchReport]
) -> AsyncIterator[Batcher]:
    batcher = DynamicBatcher(
        shouter.assemble,
        shouter.run,
        max_batch_size=MAX_BATCH_SIZE,
        max_queue=MAX_QUEUE,
        on_batch=reports.append,
        clock=clock,
    )
    yield batcher
    shouter.gate.open()
    await batcher.close()
