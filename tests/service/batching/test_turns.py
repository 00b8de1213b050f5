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

    with batcher.admit(MAX_QUEUE - 1, client="greedy"):
        waits_s = [batcher.expected_wait_s(1, client=client) for client in ("greedy", "modest")]

    assert waits_s == [10, 0]
