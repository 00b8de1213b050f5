"""Clients take turns in the queue: one that sends much delays only itself."""

import asyncio
import contextlib

import pytest

from service.errors import Overloaded
from tests.fakes import FakeClock
from tests.service.batching.shouting import (
    MAX_QUEUE,
    Batcher,
    Shouter,
    begin,
    hold_engine,
    settle,
)

pytestmark = pytest.mark.anyio


async def test_nobody_gives_way_to_a_request_that_is_refused_all_the_same(batcher: Batcher) -> None:
    with contextlib.ExitStack() as stack:
        for client in "aaaabbccdd":
            stack.enter_context(batcher.admit(1, client=client))

        for refuse in (batcher.check, batcher.admit):
            with pytest.raises(Overloaded, match="places taken: 10 of 10; needed: 3"):
                refuse(3, client="modest")

        assert batcher.depth == MAX_QUEUE


@pytest.mark.parametrize("bucket", ["a", "another"])
async def test_a_single_item_goes_before_the_many_of_another_client(
    batcher: Batcher, shouter: Shouter, bucket: str
) -> None:
    blocker = await hold_engine(batcher, shouter)
    many = begin(batcher, *"12345678", client="greedy")
    await settle()

    one = begin(batcher, "one", client="modest", bucket=bucket)
    await settle()
    shouter.gate.open()
    await asyncio.gather(blocker, many, one)

    assert shouter.batches[:2] == [("blocker",), tuple("1234")]  # begun before it came
    assert "one" in [word for batch in shouter.batches[2:4] for word in batch]


async def test_clients_with_many_items_share_the_batches(
    batcher: Batcher, shouter: Shouter
) -> None:
    blocker = await hold_engine(batcher, shouter)
    first = begin(batcher, *"1234", client="first")
    await settle()  # these are staged
    second = begin(batcher, *"abc", client="second")
    third = begin(batcher, *"xyz", client="third")
    await settle()

    shouter.gate.open()
    await asyncio.gather(blocker, first, second, third)

    assert shouter.batches[2:] == [("a", "x", "b", "y"), ("c", "z")]


async def test_the_newest_request_of_who_holds_most_gives_way_where_the_queue_is_full(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)
    staged = begin(batcher, *"1234", client="greedy")
    await settle()
    old, new = (begin(batcher, *"56789", client="greedy") for _ in range(2))
    await settle()

    one = begin(batcher, "one", client="modest")
    await settle()

    with pytest.raises(Overloaded, match="gave way"):
        await new
    shouter.gate.open()
    assert await one == ["ONE"]
    assert await staged == list("1234")
    assert await old == list("56789")


async def test_nobody_gives_way_to_a_client_that_would_hold_as_much(batcher: Batcher) -> None:
    half = MAX_QUEUE // 2

    with (
        batcher.admit(half, client="one"),
        batcher.admit(half, client="other"),
        pytest.raises(Overloaded, match="the queue is full"),
    ):
        batcher.admit(1, client="one")


async def test_nobody_gives_way_to_a_client_that_would_then_hold_as_much(batcher: Batcher) -> None:
    with contextlib.ExitStack() as stack:
        for client in "abcde":
            stack.enter_context(batcher.admit(2, client=client))

        with pytest.raises(Overloaded):
            batcher.check(2, client="modest")
        batcher.check(1, client="modest")


async def test_a_request_that_the_engine_has_begun_with_does_not_give_way(
    batcher: Batcher, shouter: Shouter
) -> None:
    await hold_engine(batcher, shouter)
    begun = begin(batcher, *"12345678", client="greedy")
    await settle()
    with (
        batcher.admit(3, client="one"),
        batcher.admit(3, client="other"),
        pytest.raises(Overloaded),
    ):
        batcher.admit(1, client="modest")

    shouter.gate.open()
    assert await begun == list("12345678")


async def test_a_client_that_left_without_its_answers_has_its_turn_like_any_other(
    batcher: Batcher, shouter: Shouter
) -> None:
    blocker = await hold_engine(batcher, shouter)
    staged = begin(batcher, *"1234", client="other")
    await settle()
    gone = begin(batcher, *"56789", client="back")
    await settle()
    gone.cancel()
    await settle()

    requests = begin(batcher, *"abcd", client="other"), begin(batcher, "one", client="back")
    await settle()
    shouter.gate.open()
    await asyncio.gather(blocker, staged, *requests)

    assert shouter.batches[2:] == [("a", "one", "b", "c"), ("d",)]


async def test_nobody_gives_way_to_a_request_of_which_nothing_has_come(batcher: Batcher) -> None:
    with batcher.admit(MAX_QUEUE, client="greedy") as ticket:
        batcher.check(1, client="modest")

        assert ticket.is_alive


async def test_the_wait_that_is_expected_is_that_of_the_clients_turn(
    batcher: Batcher, shouter: Shouter, clock: FakeClock
) -> None:
    blocker = await hold_engine(batcher, shouter)
    clock.advance(5)
    shouter.gate.open()
    await blocker  # a batch takes 5 s

    with batcher.admit(7, client="greedy"):
        waits_s = [batcher.expected_wait_s(n, client="greedy") for n in (1, 2)]
        others_s = [batcher.expected_wait_s(n, client="modest") for n in (1, 3)]

    assert waits_s == [5, 10]
    assert others_s == [0, 5]
