"""Clients that come back as soon as they are answered share a batch, and nobody else waits."""

import asyncio

import pytest

from service.batching.batch_times import Durations
from service.batching.batcher import DynamicBatcher
from service.batching.returns import Returns
from tests.fakes import FakeClock
from tests.service.batching.shouting import (
    MAX_BATCH_SIZE,
    MAX_QUEUE,
    Batcher,
    Shouter,
    begin,
    reach,
    say,
    settle,
)


def closed_loop(returns: Returns, *, num_batches: int, num_back: int, delay_s: float) -> float:
    """Batches of four, of which `num_back` come back after a delay; the time of the last answer."""
    now = 0.0
    for _ in range(num_batches):
        now += 1.0
        returns.answer(4, "bucket", now=now)
        for _ in range(num_back):
            returns.arrive(1, now + delay_s)
    return now


def test_all_are_expected_where_all_have_come_back() -> None:
    returns = Returns()
    closed_loop(returns, num_batches=40, num_back=4, delay_s=0.01)

    returns.answer(4, "bucket", now=100.0)

    assert returns.missing("bucket") == 4
    assert returns.delay_s(4) == pytest.approx(0.01, abs=0.002)
    assert returns.elapsed_s(100.5) == 0.5


def test_those_who_are_back_are_not_missing() -> None:
    returns = Returns()
    closed_loop(returns, num_batches=40, num_back=4, delay_s=0.01)
    returns.answer(4, "bucket", now=100.0)

    returns.arrive(3, 100.01)

    assert returns.missing("bucket") == 1


def test_more_clients_are_expected_to_take_longer_than_the_few_that_were_seen() -> None:
    returns = Returns()
    for now in range(40):
        size = 1 if now % 2 else 3
        returns.answer(size, "bucket", now=now)
        returns.arrive(size, now + 0.01 * size)

    assert returns.delay_s(4) == pytest.approx(0.04, rel=0.01)
    assert returns.delay_s(1) == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("num_back", [0, 1, 2])
def test_nobody_is_expected_where_too_few_come_back_any_more(num_back: int) -> None:
    returns = Returns()
    closed_loop(returns, num_batches=40, num_back=4, delay_s=0.01)

    closed_loop(returns, num_batches=40, num_back=num_back, delay_s=0.01)

    assert returns.missing("bucket") == 0


@pytest.mark.parametrize("num_more", [1, 40])
def test_whoever_comes_once_all_are_back_is_nobody_that_was_expected(num_more: int) -> None:
    returns = Returns()
    for now in range(40):
        returns.answer(4, "bucket", now=now)
        returns.arrive(3, now + 0.01)
        returns.arrive(num_more, now + 0.01)
        returns.arrive(num_more, now + 0.9)

    returns.answer(4, "bucket", now=100.0)

    assert returns.missing("bucket") == 4
    assert returns.delay_s(4) == pytest.approx(0.01, abs=0.002)


def test_nobody_is_expected_any_more_after_giving_up() -> None:
    returns = Returns()
    closed_loop(returns, num_batches=40, num_back=4, delay_s=0.01)
    returns.answer(4, "bucket", now=100.0)

    returns.give_up(100.1)

    assert returns.missing("bucket") == 0
    assert returns.elapsed_s(100.2) == float("inf")


def test_those_who_come_back_irregularly_are_nearly_always_waited_for_long_enough() -> None:
    returns = Returns()
    for now in range(80):
        returns.answer(4, "bucket", now=now)
        returns.arrive(4, now + (0.03 if now % 2 else 0.01))

    assert 0.03 < returns.delay_s(4) < 0.05


def test_nobody_is_expected_in_a_bucket_that_the_batch_was_not_of() -> None:
    returns = Returns()
    closed_loop(returns, num_batches=40, num_back=4, delay_s=0.01)

    returns.answer(4, "bucket", now=100.0)

    assert returns.missing("another bucket") == 0


def test_what_a_batch_takes_whatever_its_size_is_read_off_a_line() -> None:
    durations = Durations()
    for size in (1, 3, 8):
        durations.record(size, 0.032 + 0.008 * size)

    assert durations.fixed_s == pytest.approx(0.032)


@pytest.mark.parametrize("sizes", [(), (4,)])
def test_before_two_sizes_were_seen_nothing_is_known_of_it(sizes: tuple[int, ...]) -> None:
    durations = Durations()
    for size in sizes:
        durations.record(size, 1.0)

    assert durations.fixed_s == 0.0


class TimedShouter(Shouter):
    """Takes time on the clock of the test: some for a batch, more for every word.

    Time passes once every client that was answered has asked again.
    """

    def __init__(self, clock: FakeClock, fixed_s: float) -> None:
        super().__init__()
        self._clock = clock
        self._fixed_s = fixed_s
        self._loop = asyncio.get_running_loop()

    def run(self, batch: tuple[str, ...]) -> list[str]:
        answers = super().run(batch)
        asyncio.run_coroutine_threadsafe(settle(), self._loop).result()
        self._clock.advance(self._fixed_s + 0.01 * len(batch))
        return answers


def open_batcher(shouter: Shouter, clock: FakeClock) -> Batcher:
    return DynamicBatcher(
        shouter.assemble,
        shouter.run,
        max_batch_size=MAX_BATCH_SIZE,
        max_queue=MAX_QUEUE,
        clock=clock,
    )


async def ask_again_and_again(batcher: Batcher, word: str, times: int) -> None:
    for _ in range(times):
        await say(batcher, word, client=word)


def stop_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, whoever is waited for by a timer is waited for in vain."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", FakeClock(loop.time()))


async def after_two_halves(clock: FakeClock, *, fixed_s: float) -> tuple[Batcher, Shouter]:
    """A batcher that four clients in a closed loop have left, each after 40 requests.

    At first, two of them came while the engine worked for the others.
    """
    shouter = TimedShouter(clock, fixed_s=fixed_s)
    batcher = open_batcher(shouter, clock)
    shouter.gate.shut()
    clients = [asyncio.ensure_future(ask_again_and_again(batcher, word, 40)) for word in "ab"]
    await reach(shouter.gate.wait_for_arrival)
    clients += [asyncio.ensure_future(ask_again_and_again(batcher, word, 40)) for word in "cd"]
    await asyncio.sleep(0)
    shouter.gate.open()
    await asyncio.gather(*clients)
    return batcher, shouter


async def come_back_each(seconds: float, *, batcher: Batcher, clock: FakeClock) -> None:
    """Let two clients ask again so long after each answer, until the batcher has learnt it."""
    for _ in range(80):
        clock.advance(seconds)
        await say(batcher, "one", "two")


@pytest.mark.anyio
async def test_two_halves_of_a_batch_that_alternate_come_together(clock: FakeClock) -> None:
    batcher, shouter = await after_two_halves(clock, fixed_s=10.0)

    assert [len(batch) for batch in shouter.batches[-10:]] == [4] * 10
    await batcher.close()


@pytest.mark.anyio
async def test_where_a_batch_costs_nothing_in_addition_nobody_is_waited_for(
    clock: FakeClock,
) -> None:
    batcher, shouter = await after_two_halves(clock, fixed_s=0.0)

    assert 4 not in [len(batch) for batch in shouter.batches[:-4]]
    await batcher.close()


@pytest.mark.anyio
async def test_nobody_is_waited_for_long_after_an_answer(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, _ = await after_two_halves(clock, fixed_s=10.0)
    clock.advance(5.1)
    stop_timers(monkeypatch)

    request = begin(batcher, "alone")
    await settle()

    assert batcher.depth == 0
    assert await request == ["ALONE"]
    await batcher.close()


@pytest.mark.anyio
async def test_nobody_is_waited_for_while_another_shape_waits(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, _ = await after_two_halves(clock, fixed_s=10.0)
    stop_timers(monkeypatch)

    one = begin(batcher, "one")
    await settle()
    depth = batcher.depth
    other = begin(batcher, "other", bucket="other")
    await settle()

    assert depth == 1
    assert batcher.depth < 2
    assert [await one, await other] == [["ONE"], ["OTHER"]]
    await batcher.close()


@pytest.mark.anyio
async def test_clients_that_take_longer_to_come_back_than_a_batch_costs_are_not_waited_for(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, _ = await after_two_halves(clock, fixed_s=10.0)
    await come_back_each(11, batcher=batcher, clock=clock)
    clock.advance(11)
    await say(batcher, "one", "two")
    stop_timers(monkeypatch)

    request = begin(batcher, "alone")
    await settle()

    assert batcher.depth == 0
    assert await request == ["ALONE"]
    await batcher.close()


@pytest.mark.anyio
async def test_a_client_that_is_late_is_waited_for_half_as_long_again(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, _ = await after_two_halves(clock, fixed_s=10.0)
    await come_back_each(6, batcher=batcher, clock=clock)
    clock.advance(8.8)
    stop_timers(monkeypatch)

    request = begin(batcher, "alone")
    await settle()

    assert batcher.depth == 1
    assert await say(batcher, "late") == ["LATE"]
    assert await request == ["ALONE"]
    await batcher.close()


@pytest.mark.anyio
async def test_clients_that_stay_away_are_not_waited_for_long(clock: FakeClock) -> None:
    batcher, _ = await after_two_halves(clock, fixed_s=0.1)

    answer = await say(batcher, "alone")

    assert answer == ["ALONE"]
    await batcher.close()
