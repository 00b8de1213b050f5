"""What takes long runs in threads, so that other requests are answered meanwhile."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import prometheus_client
import pytest

from service import detector, routes, routes_inference

pytestmark = pytest.mark.anyio

Watch = Callable[[ModuleType, str], list[threading.Thread]]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watch in which threads a function of a module is called."""

    def watch(module: ModuleType, name: str) -> list[threading.Thread]:
        threads: list[threading.Thread] = []
        called = getattr(module, name)

        def watched(*args: Any, **options: Any) -> Any:
            threads.append(threading.current_thread())
            return called(*args, **options)

        monkeypatch.setattr(module, name, watched)
        return threads

    return watch


@pytest.mark.parametrize(
    ("module", "function", "query"),
    [
        (detector, "_join", ""),
        (detector, "count_found", ""),
        (routes, "to_detections", ""),
        (routes, "detections_json", ""),
        (routes, "detections_json", "?format=coco"),
    ],
)
async def test_thousands_of_detections_are_selected_counted_and_written_off_the_loop(
    client: httpx.AsyncClient,
    png_bytes: bytes,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    function: str,
    query: str,
) -> None:
    monkeypatch.setattr(detector, "ANSWERED_AT_ONCE", 0)
    threads = watch(module, function)

    response = await client.post(f"/detect{query}", content=png_bytes)

    assert response.status_code == 200
    assert len(threads) == 1
    assert threading.main_thread() not in threads


async def test_metrics_are_written_off_the_loop(client: httpx.AsyncClient, watch: Watch) -> None:
    threads = watch(routes, "generate_latest")

    response = await client.get("/metrics")

    assert response.status_code == 200
    assert len(threads) == 1
    assert threading.main_thread() not in threads


async def test_metrics_are_written_once_at_a_time(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_writing = threading.Lock()
    written = prometheus_client.generate_latest

    def write_alone(registry: Any) -> bytes:
        assert is_writing.acquire(blocking=False)
        time.sleep(0.02)
        is_writing.release()
        return written(registry)

    monkeypatch.setattr(routes, "generate_latest", write_alone)

    responses = await asyncio.gather(*(client.get("/metrics") for _ in range(4)))

    assert [response.status_code for response in responses] == [200] * 4


async def test_tensors_in_json_are_written_off_the_loop(
    client: httpx.AsyncClient, png_bytes: bytes, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "ANSWERED_AT_ONCE", 0)
    threads = watch(routes_inference, "write_infer_answer")
    image = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "data": [base64.b64encode(png_bytes).decode()],
    }

    response = await client.post("/v2/models/toy/infer", json={"inputs": [image]})

    assert response.status_code == 200
    assert len(threads) == 1
    assert threading.main_thread() not in threads
