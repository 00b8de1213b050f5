"""What is recorded for the metrics, and when."""

import asyncio

import pytest

from service import metrics as module
from service.metrics import Metrics

pytestmark = pytest.mark.anyio


async def test_what_may_wait_is_recorded_soon_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATER_S", 0.01)
    metrics, recorded = Metrics(), []
    last = asyncio.Event()

    metrics.later(lambda: recorded.append("first"))
    metrics.later(lambda: recorded.append("second"))
    metrics.later(last.set)
    before = list(recorded)
    async with asyncio.timeout(10):
        await last.wait()

    assert before == []
    assert recorded == ["first", "second"]


async def test_what_was_left_for_later_is_recorded_once_and_at_once_on_demand() -> None:
    metrics, recorded = Metrics(), []

    metrics.later(lambda: recorded.append("one"))
    metrics.settle()
    metrics.settle()

    assert recorded == ["one"]
