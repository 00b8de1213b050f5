import asyncio
from functools import partial

import pytest

from service.turns import Turns

pytestmark = pytest.mark.anyio


async def test_a_client_with_many_requests_waits_for_one_with_few() -> None:
    turns, started = Turns(), list[str]()
    loop = asyncio.get_running_loop()

    for client in ("much", "much", "much", "little", "much", "less", "little"):
        turns.add(partial(started.append, client), client=client, loop=loop)
    while len(started) < 7:
        await asyncio.sleep(0)

    assert started == ["much", "much", "little", "less", "much", "little", "much"]


async def test_an_iteration_of_the_loop_starts_one_request() -> None:
    turns, started = Turns(), list[int]()
    loop = asyncio.get_running_loop()

    for number in range(3):
        turns.add(partial(started.append, number), client="a", loop=loop)
    seen = [len(started)]
    while len(started) < 3:
        await asyncio.sleep(0)
        seen.append(len(started))

    assert seen == [1, 2, 3]


async def test_a_request_that_comes_alone_starts_at_once() -> None:
    turns, started = Turns(), list[int]()

    for number in range(3):
        turns.add(
            partial(started.append, number),
            client="a",
            loop=asyncio.get_running_loop(),
        )
        assert started[-1] == number
        await asyncio.sleep(0)
        await asyncio.sleep(0)
