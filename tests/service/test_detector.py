"""Which images share a batch, whose places are given back, and what a detector logs at start."""

import asyncio
import shutil
from pathlib import Path

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from bundle.manifest import Bundle
from bundle.preprocess import Preprocess, resized_size
from service.app import create_app
from service.detector import bucket
from service.errors import NotReady
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import begin_and_hold, running

FULL_SIZE = Preprocess()


def meet(*originals: tuple[int, int]) -> tuple[bool, int, int]:
    """Whether two images are in one bucket, and the short and long side of their batch."""
    short, long = FULL_SIZE.short_side, FULL_SIZE.long_side
    sizes = [resized_size(*original, short_side=short, long_side=long) for original in originals]
    padded = sorted(max(lengths) for lengths in zip(*sizes, strict=True))
    return len({bucket(*size, short_side=short) for size in sizes}) == 1, *padded


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.floats(0.8, 1.25))
def test_a_batch_is_no_larger_than_an_image_may_be(size: tuple[int, int], ratio: float) -> None:
    is_batch, short, long = meet(size, (max(1, round(size[0] * ratio)), size[1]))

    assert not is_batch or (short <= FULL_SIZE.short_side and long <= FULL_SIZE.long_side)


def test_a_portrait_and_a_landscape_that_are_almost_square_do_not_meet() -> None:
    assert meet((801, 800), (800, 801)) == (False, 801, 801)


def test_photographs_of_usual_shapes_are_in_few_buckets() -> None:
    shapes = [(800, 1067), (800, 1066), (800, 1200), (750, 1333), (1067, 800), (800, 800)]

    buckets = [bucket(*shape, short_side=800) for shape in shapes]

    assert buckets == [(3, 4, False)] * 2 + [(3, 5, False)] * 2 + [(4, 3, True), (3, 3, False)]


@pytest.fixture
def converted(fake_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of published weights whose classes had to be assumed."""
    shutil.copytree(fake_bundle, tmp_path / "bundle")
    provenance = {"weights": {"layout": "authors", "assumed": ["COCO's classes were assumed"]}}
    Bundle.load(tmp_path / "bundle").with_manifest(provenance=provenance).save()
    return tmp_path / "bundle"


@pytest.mark.anyio
async def test_what_was_assumed_of_the_weights_is_logged_and_shown(
    converted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(create_app(Settings(bundle=converted), lambda *_: FakeEngine())) as client:
        model = (await client.get("/model")).json()

    assert "assumed when the weights were converted: COCO's classes were assumed" in caplog.messages
    assert model["provenance"]["weights"]["assumed"] == ["COCO's classes were assumed"]


@pytest.mark.anyio
async def test_a_request_that_fails_gives_its_places_back(app: FastAPI, jpeg_bytes: bytes) -> None:
    async with running(app) as client:
        refused = await client.post("/detect", content=jpeg_bytes[:100])
        metrics = (await client.get("/metrics")).text
        app.state.serving.abort(NotReady("the test is over"))  # else closing waits for places

    assert refused.status_code == 422
    assert 'detr_queue_depth{model="toy"} 0.0' in metrics


@pytest.mark.anyio
async def test_only_batches_that_are_run_have_padding(
    fake_bundle: Path, engine: FakeEngine, png_bytes: bytes
) -> None:
    app = create_app(Settings(bundle=fake_bundle, max_batch_size=2), lambda *_: engine)
    async with running(app) as client:
        model = app.state.serving.model()
        first = await begin_and_hold(client, engine, png_bytes)
        stays, leaves = (
            asyncio.create_task(client.post("/detect", content=png_bytes)) for _ in range(2)
        )
        while model.depth < 2:
            await asyncio.sleep(0)
        while model.depth:  # until they are a batch, behind the one that runs
            await asyncio.sleep(0)
        leaves.cancel()
        engine.gate.open()
        await asyncio.gather(first, stays)
        metrics = (await client.get("/metrics")).text

    for name in ("batch_size", "padding_ratio"):
        assert f'detr_{name}_count{{model="toy"}} 2.0' in metrics


class CapturingEngine(FakeEngine):
    """Captures a CUDA graph in every run."""

    @property
    def num_captures(self) -> int:
        return len(self.batch_shapes)


@pytest.mark.anyio
async def test_captures_are_counted_from_the_start_on(fake_bundle: Path, jpeg_bytes: bytes) -> None:
    engine = CapturingEngine()
    counted = []

    async with running(create_app(Settings(bundle=fake_bundle), lambda *_: engine)) as client:
        for _ in range(2):
            metrics = (await client.get("/metrics")).text
            counted.append(f'captures_total{{model="toy"}} {float(engine.num_captures)}' in metrics)
            await client.post("/detect", content=jpeg_bytes)

    assert engine.num_captures > 2
    assert counted == [True, True]


@pytest.mark.anyio
@pytest.mark.parametrize(("batches", "num_warnings"), [("equal_shapes", 1), ("any", 0)])
async def test_a_bundle_whose_images_seldom_share_a_batch_is_told(
    fake_bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    batches: str,
    num_warnings: int,
) -> None:
    directory = shutil.copytree(fake_bundle, tmp_path / "bundle")
    Bundle.load(directory).with_manifest(batches=batches).save()

    async with running(create_app(Settings(bundle=directory), lambda *_: FakeEngine())):
        pass

    said = [line for line in caplog.messages if "only images of equal shape share a batch" in line]
    assert len(said) == num_warnings


class TwoAtOnceEngine(FakeEngine):
    """Takes a second batch while it runs the first."""

    runs_at_once = 2


@pytest.mark.anyio
async def test_an_engine_has_as_many_batches_at_once_as_it_takes(
    fake_bundle: Path, jpeg_bytes: bytes
) -> None:
    engine = TwoAtOnceEngine(max_batch_size=1)
    async with running(create_app(Settings(bundle=fake_bundle), lambda *_: engine)) as client:
        engine.gate.shut()
        for _ in engine.batch_shapes:
            engine.gate.wait_for_arrival()  # those of the warm-up
        requests = [asyncio.create_task(client.post("/detect", content=jpeg_bytes)) for _ in "12"]

        for _ in requests:
            await asyncio.to_thread(engine.gate.wait_for_arrival)

        engine.gate.open()
        assert [(await request).status_code for request in requests] == [200, 200]


@pytest.mark.anyio
@pytest.mark.parametrize(("setting", "most"), [(None, 4), (3, 3), (8, 4)])
async def test_batches_are_as_large_as_the_setting_and_the_engine_allow(
    fake_bundle: Path, jpeg_bytes: bytes, setting: int | None, most: int
) -> None:
    engine = FakeEngine(max_batch_size=4)
    settings = Settings(bundle=fake_bundle, max_batch_size=setting)
    async with running(create_app(settings, lambda *_: engine)) as client:
        engine.batch_shapes.clear()
        files = [("images", ("photo.jpg", jpeg_bytes)) for _ in range(9)]

        response = await client.post("/detect", files=files)

        model = (await client.get("/model")).json()
    assert response.status_code == 200
    assert max(shape[0] for shape in engine.batch_shapes) == most
    assert model["max_batch_size"] == most
