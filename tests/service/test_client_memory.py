"""What one client may make the service hold: bodies, and images until the engine has run them."""

import asyncio
import math
import tracemalloc
import weakref

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from bundle.preprocess import pad_batch
from service.app import create_app
from service.batching.batcher import DynamicBatcher
from service.body_budget import BodyBudget
from service.client_memory import ClientMemory
from service.detector import _Batch, _parts
from service.errors import Overloaded
from service.settings import Settings
from tests.fakes import FakeEngine, Gate
from tests.service.asking import begin_and_hold, code_of, message_of, running


@pytest.fixture
def memory() -> ClientMemory:
    return ClientMemory(100, decoding_bytes=80)


def app_with(settings: Settings, engine: FakeEngine, client_memory_bytes: int) -> FastAPI:
    changed = {"client_memory_bytes": client_memory_bytes}
    return create_app(settings.model_copy(update=changed), lambda *_: engine)


def test_images_that_do_not_fit_beside_what_a_client_holds_are_refused(
    memory: ClientMemory,
) -> None:
    memory.hold("a", 61)

    with pytest.raises(Overloaded, match="DETR_CLIENT_MEMORY_BYTES"):
        memory.promised("a", 40).__enter__()
    with memory.promised("a", 39), memory.promised("b", 80):
        pass


def test_requests_of_a_client_share_the_room_for_decoding(memory: ClientMemory) -> None:
    with (
        memory.kept("a", 20),
        memory.promised("a", 80),
        memory.promised("a", 70),
    ):
        memory.decode("a", 50)

        assert memory.room_to_decode("a") == 30
        with memory.kept("a", 1):
            assert memory.is_exceeded("a")
            assert memory.room_to_decode("a") == 29
        assert not memory.is_exceeded("a")


def test_nothing_stays_counted_of_requests_that_ended(memory: ClientMemory) -> None:
    with memory.kept("a", 101), pytest.raises(Overloaded):
        memory.promised("a", 0).__enter__()
    with pytest.raises(RuntimeError), memory.kept("a", 20), memory.promised("a", 80):
        raise RuntimeError

    with memory.kept("a", 20), memory.promised("a", 80):
        assert memory.room_to_decode("a") == 80


def test_an_unfinished_body_gives_way_to_images_of_its_client(memory: ClientMemory) -> None:
    budget = BodyBudget(1000, client_bytes=60, memory=memory)
    whole, unfinished = budget.open("a"), budget.open("a")
    budget.take(whole, 5)
    whole.is_whole = True
    budget.take(unfinished, 5)

    with memory.promised("a", 80):
        with pytest.raises(Overloaded):
            budget.take(unfinished, 1)
        budget.take(budget.open("b"), 30)

    assert (whole.is_evicted, unfinished.is_evicted) == (False, True)


def test_a_body_that_was_read_counts_as_what_is_left_of_it(memory: ClientMemory) -> None:
    budget = BodyBudget(1000, client_bytes=100, memory=memory)
    body = budget.open("a")
    budget.take(body, 40)

    budget.settle(body, 30)
    left = memory.room_to_decode("a")
    budget.close(body)

    assert left == 70
    assert memory.room_to_decode("a") == 80


@pytest.mark.anyio
async def test_a_request_that_can_never_fit_is_told_so(
    settings: Settings, png_bytes: bytes
) -> None:
    async with running(app_with(settings, FakeEngine(), 300_000)) as client:
        answer = await client.post("/detect", files=[("images", png_bytes)] * 2)

    assert (answer.status_code, code_of(answer)) == (413, "image_too_large")
    assert "(images: 2); send fewer" in message_of(answer)
    assert "DETR_CLIENT_MEMORY_BYTES" in message_of(answer)


@pytest.mark.anyio
async def test_a_body_that_can_never_fit_is_told_so(settings: Settings) -> None:
    async with running(app_with(settings, FakeEngine(), 100_000)) as client:
        answer = await client.post("/detect", content=bytes(50_001))

    assert (answer.status_code, code_of(answer)) == (413, "payload_too_large")
    assert "at most 50000 bytes" in message_of(answer)
    assert "raise the service's DETR_CLIENT_MEMORY_BYTES" in message_of(answer)


@pytest.mark.anyio
async def test_images_count_until_the_engine_has_run_them(
    settings: Settings, engine: FakeEngine, png_bytes: bytes
) -> None:
    async with running(app_with(settings, engine, 300_000)) as client:
        held = await begin_and_hold(client, engine, png_bytes)
        refused = await client.post("/detect", content=png_bytes)
        engine.gate.open()
        answers = [await held, await client.post("/detect", content=png_bytes)]

    assert (refused.status_code, code_of(refused)) == (503, "overloaded")
    assert "DETR_CLIENT_MEMORY_BYTES" in message_of(refused)
    assert [answer.status_code for answer in answers] == [200, 200]


@pytest.mark.anyio
async def test_the_images_of_a_batch_are_in_memory_once() -> None:
    images = [np.ones((2, 3), np.uint8)]
    decoded = weakref.ref(images[0])
    gate = Gate()
    gate.shut()

    def run(batch: np.ndarray) -> list[int]:
        gate.pass_through()
        return [int(image.sum()) for image in batch]

    batcher = DynamicBatcher(np.stack, run, max_batch_size=4, max_queue=4, parts=list)
    with batcher.admit(1) as ticket:
        answer = asyncio.ensure_future(ticket.run([images.pop()], ["a"]))
        await asyncio.to_thread(gate.wait_for_arrival)
        is_in_memory_twice = decoded() is not None
        gate.open()
        answers = await answer
    await batcher.close()

    assert answers == [6]
    assert not is_in_memory_twice


@pytest.mark.anyio
async def test_a_request_keeps_no_image_beside_the_batch(
    client: httpx.AsyncClient, engine: FakeEngine, png_bytes: bytes
) -> None:
    arrays = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    tracemalloc.start()
    held = await begin_and_hold(client, engine, png_bytes)
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    engine.gate.open()

    sizes = [trace.size for trace in snapshot.filter_traces([arrays]).traces]
    assert (await held).status_code == 200
    assert sizes.count(math.prod(engine.batch_shapes[-1])) == 1


def test_images_of_a_padded_batch_are_found_in_it_again() -> None:
    images = [np.full(size, 7, np.uint8) for size in [(4, 2, 3), (3, 5, 3)]]

    found = _parts(_Batch(*pad_batch(images, min_side=8), padding_ratio=0.5))

    assert [image.shape for image in found] == [(4, 2, 3), (3, 5, 3)]
    assert all((image == 7).all() and image.base is not None for image in found)
