"""What tests of the batcher share: an engine for words, and how they are sent to it."""

import asyncio
from collections.abc import Callable
from typing import Any

from service.batching.batcher import DynamicBatcher
from tests.fakes import Gate

MAX_BATCH_SIZE = 4
MAX_QUEUE = 10


class Shouter:
    """Answers every word in capitals; raises on a batch with a "bad" one."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.assembled = Gate()
        self.batches: list[tuple[str, ...]] = []

    def assemble(self, words: list[str]) -> tuple[str, ...]:
        assert words
        if "unjoinable" in words:
            raise ValueError("cannot be joined")
        if "exit at once" in words:
            raise SystemExit
        self.assembled.pass_through()
        return tuple(words)

    def run(self, batch: tuple[str, ...]) -> list[str]:
        self.batches.append(batch)
        self.gate.pass_through()
        if any(word.startswith("bad") for word in batch):
            raise RuntimeError("a bad word")
        if "exit" in batch:
            raise SystemExit
        if "interrupt" in batch:
            raise KeyboardInterrupt
        if "forgotten" in batch:
            return []
        if "repeated" in batch:
            return [*batch, *batch]
        return [word.upper() for word in batch]

    @property
    def words(self) -> list[str]:
        return [word for batch in self.batches for word in batch]


Batcher = DynamicBatcher[str, tuple[str, ...], str]


async def say(
    batcher: Batcher,
    *words: str,
    bucket: str = "a",
    client: str | None = None,
    deadline_s: float | None = None,
) -> list[str]:
    with batcher.admit(len(words), client=client, deadline_s=deadline_s) as ticket:
        return await ticket.run(words, [bucket] * len(words))


def begin(batcher: Batcher, *words: str, **options: Any) -> asyncio.Task[list[str]]:
    return asyncio.ensure_future(say(batcher, *words, **options))


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def reach(wait: Callable[[], None]) -> None:
    await asyncio.to_thread(wait)


async def hold_engine(batcher: Batcher, shouter: Shouter) -> asyncio.Task[list[str]]:
    """Keep the engine busy with a word of another bucket until its gate is opened."""
    shouter.gate.shut()
    blocker = begin(batcher, "blocker", bucket="blocker")
    await reach(shouter.gate.wait_for_arrival)
    return blocker
