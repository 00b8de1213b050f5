"""Which body gives way where bodies hold too much memory."""

import asyncio
from collections.abc import Callable

import pytest

from service.app import create_app
from service.body_budget import COPIES, Body, BodyBudget
from service.client_memory import ClientMemory
from service.errors import Overloaded
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import running


@pytest.fixture
def budget() -> BodyBudget:
    return BodyBudget(100 * COPIES, client_bytes=60 * COPIES)


def body_of(budget: BodyBudget, client: str, num_bytes: int) -> Body:
    body = budget.open(client)
    budget.take(body, num_bytes)
    return body


def test_the_largest_unfinished_body_of_a_client_gives_way_to_its_next(budget: BodyBudget) -> None:
    small, large = body_of(budget, "a", 20), body_of(budget, "a", 30)

    body_of(budget, "a", 20)

    assert (small.is_evicted, large.is_evicted) == (False, True)


def test_the_client_that_holds_most_gives_way_to_others(budget: BodyBudget) -> None:
    greedy, modest = body_of(budget, "a", 60), body_of(budget, "b", 35)

    body_of(budget, "c", 10)

    assert (greedy.is_evicted, modest.is_evicted) == (True, False)


def test_a_body_that_is_whole_is_not_given_up(budget: BodyBudget) -> None:
    whole = body_of(budget, "a", 60)
    whole.is_whole = True

    with pytest.raises(Overloaded):
        body_of(budget, "a", 10)

    assert not whole.is_evicted


def close_twice(budget: BodyBudget, body: Body) -> None:
    budget.close(body)
    budget.close(body)


def settle_and_close(budget: BodyBudget, body: Body) -> None:
    budget.settle(body, 10)
    budget.close(body)


@pytest.mark.parametrize("finish", [BodyBudget.close, close_twice, settle_and_close])
def test_bodies_that_are_done_hold_nothing_and_leave_no_more_room_than_before(
    budget: BodyBudget, finish: Callable[[BodyBudget, Body], None]
) -> None:
    for _ in range(10):
        finish(budget, body_of(budget, "a", 60))

    most, enough = body_of(budget, "a", 60), body_of(budget, "b", 40)
    assert (most.is_evicted, enough.is_evicted) == (False, False)
    body_of(budget, "c", 1)
    assert (most.is_evicted, enough.is_evicted) == (True, False)


def test_bodies_of_a_client_have_a_limit_of_their_own_beside_that_of_its_memory() -> None:
    memory = ClientMemory(1000, decoding_bytes=1000)
    budget = BodyBudget(100 * COPIES, client_bytes=60 * COPIES, memory=memory)
    first = body_of(budget, "a", 40)

    body_of(budget, "a", 30)

    assert first.is_evicted


@pytest.mark.anyio
async def test_who_waits_for_more_of_a_body_that_gave_way_is_told_at_once(
    budget: BodyBudget,
) -> None:
    body = body_of(budget, "a", 50)

    async def wait_for_more() -> None:
        async with asyncio.timeout(None) as body.wait:
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait_for_more())
    await asyncio.sleep(0)
    body_of(budget, "a", 20)

    await asyncio.wait([waiting], timeout=10)
    assert waiting.done()
    assert isinstance(waiting.exception(), TimeoutError)


def test_a_body_that_gave_way_takes_nothing_more(budget: BodyBudget) -> None:
    large = body_of(budget, "a", 50)
    body_of(budget, "a", 20)

    with pytest.raises(Overloaded):
        budget.take(large, 10)

    assert not body_of(budget, "a", 40).is_evicted


@pytest.mark.anyio
async def test_a_body_holds_no_memory_once_its_request_is_answered(settings: Settings) -> None:
    one_body = settings.model_copy(update={"client_body_memory_bytes": 1})  # at least that

    async with running(create_app(one_body, lambda *_: FakeEngine())) as client:
        answers = [
            await client.post("/detect", content=bytes(settings.max_body_bytes)) for _ in range(3)
        ]

    assert [answer.status_code for answer in answers] == [415] * 3
