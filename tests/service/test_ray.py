"""Replicas and bulk detection on a Ray cluster of two raylets."""

import importlib
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from prometheus_client import Histogram

from benchmarks.replicas import free_port
from bundle.manifest import Bundle
from service.bulk import detect_all, make_job, with_ray
from service.bulk_images import find_chunks
from service.schemas import DetectQuery
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.bulk_fault import DiesOnce
from tests.service.ray_cluster import cluster

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own

LIMIT_S = 120


@pytest.fixture(scope="module")
def ray_app() -> Any:
    """Imported where it is used: that takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("service.ray_app")


@pytest.mark.parametrize(
    ("num_replicas", "ratio", "wanted"),
    [(2, 1.0, 2), (2, 1.4, 3), (2, 9.0, 4), (2, 0.5, 2), (2, 0.05, 1), (1, 0.0, 0)],
)
def test_replicas_grow_with_the_wait_and_shrink_one_by_one(ray_app, num_replicas, ratio, wanted):
    assert ray_app.num_wanted(num_replicas, ratio) == wanted


@pytest.mark.parametrize(
    "option",
    [
        "--min-replicas=0",
        "--min-replicas=3 --max-replicas=2",
        "--max-replicas=0",
        "--wait=0",
        "--wait=nan",
        "--cpus=-1",
        "--gpus=inf",
    ],
)
def test_a_scale_that_cannot_be_is_refused(ray_app, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        ray_app.main(option.split())

    assert option.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]


def test_the_wait_is_that_of_images_since_the_last_look(ray_app):
    waits = Histogram("waits", "", ["model"], registry=None)
    wait = ray_app.QueueWait(waits)

    looks = []
    for seconds in [(1.0, 3.0), (), (0.5,)]:
        for one in seconds:
            waits.labels("a").observe(one)
        looks.append(wait.mean_s())

    assert looks == [2.0, 0.0, 0.5]


@pytest.mark.anyio
async def test_a_replica_is_ready_as_soon_as_ray_may_send_it_requests(ray_app, settings, png_bytes):
    app = ray_app.started_app(settings, lambda *_: FakeEngine())

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post("/detect", content=png_bytes)

    assert answer.status_code == 200


@pytest.mark.anyio
async def test_a_replica_whose_engine_does_not_open_does_not_start(ray_app, settings):
    def fail(*_: Any) -> FakeEngine:
        raise ValueError("no such engine")

    app = ray_app.started_app(settings, fail)

    with pytest.raises(RuntimeError, match="no such engine"):
        async with app.router.lifespan_context(app):
            pass


class SlowEngine(FakeEngine):
    """Takes an image at a time, a fifth of a second for each once it is warm."""

    def run(self, images, padding_mask):
        time.sleep(0.2 if self.num_images > 6 else 0)
        return super().run(images, padding_mask)


def open_slow(_: Bundle, __: Settings) -> FakeEngine:
    return SlowEngine(max_batch_size=1)


@pytest.fixture(scope="module")
def nodes(ray_app: Any) -> Iterator[None]:
    with cluster():
        yield


@pytest.fixture
def address(ray_app: Any, nodes: None, fake_bundle: Path) -> Iterator[str]:
    port = free_port()
    scale = ray_app.Scale(max_replicas=2, wait_s=0.1, max_per_node=1, upscale_delay_s=0)
    settings = Settings(bundle=fake_bundle)
    ray_app.serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
    app = ray_app.application(settings, scale, open_engine=open_slow)
    ray_app.serve.run(app, name="detr-serve")
    yield f"http://127.0.0.1:{port}"
    ray_app.serve.shutdown()


@pytest.mark.slow
def test_a_second_node_gets_a_replica_once_images_wait(ray_app, address, png_bytes):
    deadline = time.monotonic() + LIMIT_S

    def num_running() -> int:
        (deployment,) = ray_app.serve.status().applications["detr-serve"].deployments.values()
        return deployment.replica_states.get("RUNNING", 0)

    def ask() -> list[int]:
        statuses = []
        with httpx.Client(timeout=60) as client:
            while num_running() < 2 and time.monotonic() < deadline:
                statuses.append(client.post(f"{address}/detect", content=png_bytes).status_code)
        return statuses

    at_first = num_running()
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask) for _ in range(4)]
        statuses = [status for client in clients for status in client.result()]

    assert at_first == 1
    assert num_running() == 2
    assert set(statuses) == {200}


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_image_and_doubles_none(
    nodes, toy_bundle, png_bytes, tmp_path
):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(8):
        (photos / f"{number}.png").write_bytes(png_bytes)
    chunks = find_chunks([str(photos)], chunk_size=2)
    job = make_job(Bundle.load(toy_bundle), chunks, query=DetectQuery())

    num_failed = detect_all(job, chunks, out=str(out), run=with_ray(2, num_cpus=1, worker=DiesOnce))

    rows = pq.read_table(out / "parts").to_pylist()
    assert (out / "has-died").exists()
    assert num_failed == 0
    assert [row["image_id"] for row in rows] == list(range(8))
    assert all(row["detections"] for row in rows)
