"""Requests that would come too late, or have: at the door, in the queue, before the engine."""

import pytest

from service.errors import DeadlineExceeded, Overloaded
from tests.fakes import FakeClock
from tests.service.batching.shouting import (
    Batcher,
    Shouter,
    begin,
    hold_engine,
    reach,
    say,
    settle,
)

pytestmark = pytest.mark.anyio


async def test_a_wait_longer_than_the_deadline_is_refused_at_the_door(
    batcher: Batcher, shouter: Shouter, clock: FakeClock
) -> None:
    blocker = await hold_engine(batcher, shouter)
    clock.advance(5)
    shouter.gate.open()
    await blocker  # the batcher has now seen a batch that took 5 s
    await hold_engine(batcher, shouter)

    with pytest.raises(Overloaded, match="longer than the deadline") as caught:
        batcher.admit(1, deadline_s=4)

    assert caught.value.headers == {"Retry-After": "1"}
    with batcher.admit(1, deadline_s=6):
        pass
    clock.advance(2)  # 3 s are left of the batch that runs
    with batcher.admit(1, deadline_s=4):
        pass
    clock.advance(60)  # it takes longer than it should
    assert batcher.expected_wait_s(1) == 0


async def test_a_request_past_its_deadline_never_reaches_the_engine(
    batcher: Batcher, shouter: Shouter, clock: FakeClock
) -> None:
    await hold_engine(batcher, shouter)
    late = begin(batcher, "late", "late too", deadline_s=60)
    patient = begin(batcher, "patient", deadline_s=600)
    await settle()
    clock.advance(61)

    shouter.gate.open()

    with pytest.raises(DeadlineExceeded):
        await late
    assert await patient == ["PATIENT"]
    assert shouter.words == ["blocker", "patient"]
    assert batcher.depth == 0


async def test_a_staged_request_past_its_deadline_never_reaches_the_engine(
    batcher: Batcher, shouter: Shouter, clock: FakeClock
) -> None:
    await hold_engine(batcher, shouter)
    patient = begin(batcher, "1", "2")
    late = begin(batcher, "late", "late too", deadline_s=60)
    await settle()
    clock.advance(61)

    shouter.gate.open()

    with pytest.raises(DeadlineExceeded):
        await late
    assert await patient == ["1", "2"]
    assert shouter.words == ["blocker", "1", "2"]


async def test_a_deadline_is_answered_while_the_engine_is_busy(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)

    with pytest.raises(DeadlineExceeded):
        await say(batcher, "late", deadline_s=0.01)

    assert batcher.depth == 0
    assert shouter.words == ["blocker"]


async def test_a_deadline_is_answered_where_the_engine_has_begun_with_a_part_of_the_request(
    batcher: Batcher, shouter: Shouter
) -> None:
    shouter.gate.shut()

    with pytest.raises(DeadlineExceeded):
        await say(batcher, *"12345", deadline_s=0.05)

    assert shouter.batches == [tuple("1234")]


async def test_a_deadline_that_passes_before_the_request_is_queued_is_answered_then(
    batcher: Batcher, clock: FakeClock
) -> None:
    with batcher.admit(1, deadline_s=1) as ticket:
        clock.advance(1)

        with pytest.raises(DeadlineExceeded, match="while the images were decoded"):
            await ticket.run(["late"], ["a"])


async def test_a_deadline_that_passes_during_the_run_is_forgiven(
    batcher: Batcher, shouter: Shouter, clock: FakeClock
) -> None:
    shouter.gate.shut()
    request = begin(batcher, "started", deadline_s=60)
    await reach(shouter.gate.wait_for_arrival)
    clock.advance(61)

    shouter.gate.open()

    assert await request == ["STARTED"]
