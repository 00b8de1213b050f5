"""What is left of requests: everyone is answered when the engine is given up; nothing is kept."""

import asyncio
import weakref

import pytest

from service.errors import NotReady
from tests.service.batching.shouting import Batcher, Shouter, begin, hold_engine, say, settle

pytestmark = pytest.mark.anyio


async def test_giving_up_answers_everyone_and_waits_for_nothing(
    batcher: Batcher, shouter: Shouter
) -> None:
    running = await hold_engine(batcher, shouter)
    decoding = batcher.admit(1)
    requests = [running, begin(batcher, "one"), begin(batcher, "two", "three")]
    await settle()

    batcher.abort(NotReady("the engine is gone"))
    answers = await asyncio.gather(*requests, return_exceptions=True)
    await batcher.close()

    assert [repr(answer) for answer in answers] == ["NotReady('the engine is gone')"] * 3
    with pytest.raises(NotReady, match="the engine is gone"):
        await decoding.run(["decoded"], ["a"])
    with pytest.raises(NotReady):
        batcher.admit(1)
    assert batcher.depth == 0


class Word(str):
    """Text that can be watched."""


async def test_an_answered_request_is_not_kept_in_memory(
    batcher: Batcher, shouter: Shouter
) -> None:
    word = Word("large")
    with batcher.admit(1, deadline_s=60) as ticket:
        assert await ticket.run([word], ["a"]) == ["LARGE"]
    kept: list[weakref.ref[object]] = [weakref.ref(word), weakref.ref(ticket)]

    del word, ticket
    await say(batcher, "next")  # so the threads are done with what came before
    shouter.batches.clear()
    await settle()

    assert [reference() for reference in kept] == [None, None]
