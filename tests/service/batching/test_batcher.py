"""The batcher on plain strings: full, cancelled, failing, draining, fair."""

import asyncio

import pytest

from service.batching.batcher import BatchReport
from service.errors import EngineFailure, NotReady, Overloaded
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


async def test_a_lone_item_runs_at_once(batcher: Batcher, shouter: Shouter) -> None:
    assert await say(batcher, "one") == ["ONE"]
    assert shouter.batches == [("one",)]


async def test_results_come_in_the_order_of_the_items(batcher: Batcher) -> None:
    words = [f"word{index}" for index in range(MAX_QUEUE)]

    with batcher.admit(len(words)) as ticket:
        answers = await ticket.run(words, [f"bucket{index % 3}" for index in range(len(words))])

    assert answers == [word.upper() for word in words]


async def test_items_that_wait_for_the_engine_share_the_next_batch(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)
    requests = [begin(batcher, word) for word in ("one", "two", "three")]
    await settle()

    shouter.gate.open()

    assert await asyncio.gather(*requests) == [["ONE"], ["TWO"], ["THREE"]]
    assert shouter.batches == [("blocker",), ("one", "two", "three")]


async def test_a_batch_is_never_larger_than_the_engine_takes(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)
    requests = [begin(batcher, f"{index}") for index in range(9)]
    await settle()

    shouter.gate.open()
    await asyncio.gather(*requests)

    assert [len(batch) for batch in shouter.batches] == [1, 4, 4, 1]


async def test_buckets_are_never_mixed(batcher: Batcher, shouter: Shouter) -> None:
    await hold_engine(batcher, shouter)
    requests = [begin(batcher, f"{bucket}{n}", bucket=bucket) for n in "12" for bucket in "ab"]
    await settle()

    shouter.gate.open()
    await asyncio.gather(*requests)

    assert shouter.batches == [("blocker",), ("a1", "a2"), ("b1", "b2")]


async def test_a_rare_shape_is_not_starved_by_a_busy_one(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)
    await settle()
    requests = [begin(batcher, *"123", bucket="busy"), begin(batcher, "rare", bucket="rare")]
    await settle()
    requests.append(begin(batcher, *"456", bucket="busy"))
    await settle()

    shouter.gate.open()
    await asyncio.gather(*requests)

    assert shouter.batches == [("blocker",), tuple("1234"), ("rare",), tuple("56")]


async def test_a_request_that_does_not_fit_is_refused_whole(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)
    admitted = begin(batcher, *"12345678")
    await settle()
    depth = batcher.depth

    with pytest.raises(Overloaded, match="the queue is full") as caught:
        batcher.admit(MAX_QUEUE - depth + 1)

    assert int(caught.value.headers["Retry-After"]) >= 1
    assert batcher.depth == depth
    shouter.gate.open()
    assert await admitted == list("12345678")


async def test_places_are_taken_from_admission_on(batcher: Batcher) -> None:
    with batcher.admit(MAX_QUEUE), pytest.raises(Overloaded):
        batcher.admit(1)

    assert batcher.depth == 0
    assert await say(batcher, "next") == ["NEXT"]


@pytest.mark.parametrize("num_others", [1, 3], ids=["queued", "staged"])
async def test_a_cancelled_request_is_dropped_before_it_runs(
    batcher: Batcher, shouter: Shouter, num_others: int
) -> None:
    await hold_engine(batcher, shouter)
    gone = begin(batcher, "gone")
    others = [begin(batcher, f"{index}") for index in range(num_others)]
    await settle()

    gone.cancel()
    await settle()
    shouter.gate.open()

    await asyncio.gather(*others)
    assert gone.cancelled()
    assert "gone" not in shouter.words
    assert batcher.depth == 0


async def test_a_batch_that_everyone_has_left_is_not_run(
    batcher: Batcher, shouter: Shouter, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = await hold_engine(batcher, shouter)
    staged = begin(batcher, *"1234")
    await settle()

    staged.cancel()
    await settle()
    shouter.gate.open()
    await blocker

    assert await say(batcher, "next") == ["NEXT"]
    assert shouter.batches == [("blocker",), ("next",)]
    assert caplog.messages == []


@pytest.mark.parametrize("outcome", ["LATE", EngineFailure("broken")], ids=["answer", "failure"])
async def test_an_outcome_for_a_request_that_is_just_cancelled_harms_nothing(
    batcher: Batcher, shouter: Shouter, outcome: str | EngineFailure
) -> None:
    await hold_engine(batcher, shouter)
    with batcher.admit(1) as ticket:
        request = asyncio.ensure_future(ticket.run(["late"], ["a"]))
        await settle()
        (entry,) = ticket.entries

        request.cancel()
        ticket.deliver(entry, outcome)

        with pytest.raises(asyncio.CancelledError):
            await request


async def test_a_batch_that_failed_does_not_say_how_long_one_takes(
    batcher: Batcher, shouter: Shouter, clock: FakeClock
) -> None:
    shouter.gate.shut()
    guilty = begin(batcher, "bad")
    await reach(shouter.gate.wait_for_arrival)
    clock.advance(50)
    shouter.gate.open()
    with pytest.raises(EngineFailure):
        await guilty

    await hold_engine(batcher, shouter)

    assert batcher.expected_wait_s(1) == 0


async def test_only_the_guilty_item_of_a_failed_batch_fails(
    batcher: Batcher, shouter: Shouter, reports: list[BatchReport]
) -> None:
    await hold_engine(batcher, shouter)
    requests = [begin(batcher, word) for word in ("one", "two", "bad", "four")]
    await settle()

    shouter.gate.open()
    answers = await asyncio.gather(*requests, return_exceptions=True)

    assert answers[:2] + answers[3:] == [["ONE"], ["TWO"], ["FOUR"]]
    assert isinstance(answers[2], EngineFailure)
    assert reports[-1].num_failed == 1
    assert await say(batcher, "again") == ["AGAIN"]


@pytest.mark.parametrize(
    "guilty",
    ["bad", "unjoinable", "forgotten", "repeated", "exit", "exit at once", "interrupt"],
)
async def test_every_fault_of_the_engine_is_an_engine_failure(
    batcher: Batcher, guilty: str
) -> None:
    with pytest.raises(EngineFailure):
        await say(batcher, guilty)

    assert await say(batcher, "again") == ["AGAIN"]


async def test_a_request_with_one_guilty_item_fails_as_a_whole(
    batcher: Batcher, shouter: Shouter
) -> None:
    with pytest.raises(EngineFailure):
        await say(batcher, "one", "bad", *"345678")

    assert batcher.depth == 0
    assert await say(batcher, "again") == ["AGAIN"]


async def test_closing_refuses_what_comes_and_finishes_what_was_admitted(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)
    ticket = batcher.admit(1)
    admitted = begin(batcher, *"12345")
    gone = begin(batcher, "gone")
    await settle()

    closing = asyncio.ensure_future(batcher.close())
    gone.cancel()
    await settle()
    with pytest.raises(NotReady):
        batcher.admit(1)
    shouter.gate.open()
    with ticket:  # admitted before the end, queued after it
        assert await ticket.run(["decoded"], ["a"]) == ["DECODED"]

    assert await admitted == list("12345")
    await closing


async def test_a_batch_is_reported_with_its_waits(
    batcher: Batcher, shouter: Shouter, clock: FakeClock, reports: list[BatchReport]
) -> None:
    blocker = await hold_engine(batcher, shouter)
    request = begin(batcher, "one", "two")
    await settle()
    clock.advance(3)

    shouter.gate.open()
    await asyncio.gather(blocker, request)

    assert reports == [BatchReport(1, [0], 3, 0), BatchReport(2, [3, 3], 0, 0)]


async def test_a_request_took_as_long_as_its_longest_batch_and_waited_for_its_last(
    batcher: Batcher, shouter: Shouter, clock: FakeClock
) -> None:
    shouter.gate.shut()
    with batcher.admit(5) as ticket:
        request = asyncio.ensure_future(ticket.run([*"12345"], ["a"] * 5))
        await reach(shouter.gate.wait_for_arrival)
        clock.advance(5)

        shouter.gate.open()
        await request

    assert (ticket.wait_s, ticket.run_s) == (5, 5)


async def test_answers_stay_right_under_a_storm_of_requests(
    batcher: Batcher, shouter: Shouter
) -> None:
    someone_left = asyncio.Event()

    async def persist(name: str, num_words: int, bucket: str) -> bool:
        words = [f"{name}.{index}" for index in range(num_words)]
        try:
            while True:
                try:
                    return await say(batcher, *words, bucket=bucket) == [w.upper() for w in words]
                except Overloaded:
                    await someone_left.wait()
        finally:
            someone_left.set()
            someone_left.clear()

    storm = [
        asyncio.ensure_future(persist(f"n{n}", 1 + n % MAX_QUEUE, "abc"[n % 3])) for n in range(300)
    ]
    await settle()
    for task in storm[::7]:
        task.cancel()
    answers = await asyncio.gather(*storm, return_exceptions=True)

    survivors = [answer for n, answer in enumerate(answers) if n % 7]
    assert all(answer is True for answer in survivors)
    assert max(len(batch) for batch in shouter.batches) <= MAX_BATCH_SIZE
    assert batcher.depth == 0
