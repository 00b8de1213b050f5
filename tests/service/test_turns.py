import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from service.turns import Turns

pytestmark = pytest.mark.anyio

Ask = Callable[..., None]


@pytest.fixture
def started() -> list[str]:
    """The connections whose call was made."""
    return []


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
async def ask(turns: Turns, started: list[str]) -> Ask:
    """Add a call on a connection, which is named CLIENT or CLIENT-NUMBER."""
    loop = asyncio.get_running_loop()

    def ask(connection: str) -> None:
        client, _, _ = connection.partition("-")
        turns.add(connection, partial(started.append, connection), client=client, loop=loop)

    return ask


async def iterate(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_client_with_many_requests_waits_for_one_with_few(
    ask: Ask, started: list[str]
) -> None:
    for connection in ("much-1", "much-2", "much-3", "little-1", "much-4", "less", "little-2"):
        ask(connection)
    await iterate(10)

    assert started == ["much-1", "much-2", "little-1", "less", "much-3", "little-2", "much-4"]


async def test_an_iteration_of_the_loop_starts_one_request(ask: Ask, started: list[str]) -> None:
    for connection in ("a-1", "a-2", "a-3"):
        ask(connection)
    seen = [len(started)]
    for _ in range(2):
        await iterate(1)
        seen.append(len(started))

    assert seen == [1, 2, 3]


async def test_a_request_that_comes_alone_starts_at_once(ask: Ask, started: list[str]) -> None:
    for number in range(3):
        ask(f"a-{number}")
        assert len(started) == number + 1
        await iterate(2)


async def test_a_connection_that_is_lost_takes_no_turn(
    turns: Turns, ask: Ask, started: list[str]
) -> None:
    for connection in ("a-1", "a-2", "a-3", "b"):
        ask(connection)
    turns.remove("a-2", client="a")
    turns.remove("b", client="b")
    turns.remove("c", client="c")  # had none
    await iterate(1)

    assert started == ["a-1", "a-3"]
