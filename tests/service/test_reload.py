"""Another bundle takes the place of the one that is served, or is refused; nobody notices."""

import asyncio
import contextlib
import itertools
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from bundle.manifest import Bundle
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine, Gate
from tests.server_process import Process
from tests.service.asking import begin_and_hold, code_of, message_of, running
from tests.service.load import Load

KEY = "ein Schlüssel für Tests"
HEADERS = httpx.Headers({"Authorization": f"Bearer {KEY}"}, encoding="utf-8")


class Place:
    """The place of a bundle: a link that is switched from one to another."""

    def __init__(self, folder: Path, first: Path) -> None:
        self.path = folder / "served"
        self._folder = folder
        self.put(first)

    def put(self, bundle: Path) -> None:
        fresh = self._folder / "fresh"
        fresh.symlink_to(bundle)
        fresh.replace(self.path)


@pytest.fixture
def named(fake_bundle: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies of the fake bundle under other names."""

    def named(name: str) -> Path:
        directory = shutil.copytree(fake_bundle, tmp_path / name)
        Bundle.load(directory).with_manifest(name=name).save()
        return directory

    return named


@pytest.fixture
def place(named: Callable[[str], Path], tmp_path: Path) -> Place:
    return Place(tmp_path, named("first"))


@pytest.fixture
def engines() -> list[FakeEngine]:
    return []


@pytest.fixture
def app(settings: Settings, place: Place, engines: list[FakeEngine]) -> Iterator[FastAPI]:
    def open_engine(*_: object) -> FakeEngine:
        engines.append(FakeEngine(max_batch_size=4))
        return engines[-1]

    changes = {"bundle": place.path, "admin_key": KEY}
    yield create_app(Settings(**settings.model_dump() | changes), open_engine)
    for engine in engines:
        engine.gate.open()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [({}, 403, "forbidden"), ({"Authorization": "Bearer wrong"}, 403, "forbidden")],
)
async def test_a_reload_needs_the_key(
    client: httpx.AsyncClient, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await client.post("/admin/reload", headers=headers)

    assert (answer.status_code, code_of(answer)) == (status, code)


@pytest.mark.anyio
async def test_the_kind_of_a_key_may_be_written_in_any_case(client: httpx.AsyncClient) -> None:
    in_small = {"Authorization": HEADERS["Authorization"].replace("Bearer", "bearer")}

    answer = await client.post("/admin/reload", headers=httpx.Headers(in_small, encoding="utf-8"))

    assert answer.status_code == 200


@pytest.mark.anyio
async def test_there_is_no_reload_without_a_key_in_the_settings(settings: Settings) -> None:
    app = create_app(settings, lambda *_: FakeEngine())

    async with running(app) as client:
        answer = await client.post("/admin/reload", headers=HEADERS)

    assert (answer.status_code, code_of(answer)) == (404, "not_found")


@pytest.mark.anyio
async def test_a_reload_serves_the_new_bundle_and_releases_the_old_one(
    client: httpx.AsyncClient,
    place: Place,
    named: Callable[[str], Path],
    engines: list[FakeEngine],
    png_bytes: bytes,
) -> None:
    place.put(named("second"))

    answer = await client.post("/admin/reload", headers=HEADERS)

    model = (await client.get("/model")).json()
    found = (await client.post("/detect", content=png_bytes)).json()
    metrics = (await client.get("/metrics")).text
    assert answer.status_code == 200
    assert answer.json()["version"] == model["version"] == found["model"]["version"]
    assert (model["name"], found["model"]["name"]) == ("second", "second")
    assert [engine.is_closed for engine in engines] == [True, False]
    assert re.findall(r'detr_model_info{model="(\w+)"', metrics) == ["second"]
    assert 'detr_reloads_total{model="second",result="swapped"} 1.0' in metrics


@pytest.mark.anyio
async def test_the_old_engine_answers_what_it_had_admitted(
    client: httpx.AsyncClient,
    place: Place,
    named: Callable[[str], Path],
    engines: list[FakeEngine],
    png_bytes: bytes,
) -> None:
    old = engines[0]
    held = await begin_and_hold(client, old, png_bytes)
    place.put(named("second"))

    reload = asyncio.ensure_future(client.post("/admin/reload", headers=HEADERS))
    while (await client.get("/model")).json()["name"] != "second":
        await asyncio.sleep(0)
    new = await client.post("/detect", content=png_bytes)
    was_closed = old.is_closed
    old.gate.open()

    assert new.json()["model"]["name"] == "second"
    assert not was_closed
    assert (await held).json()["model"]["name"] == "first"
    assert (await reload).status_code == 200
    assert old.is_closed


@pytest.mark.anyio
async def test_a_reload_whose_client_leaves_is_still_completed(
    client: httpx.AsyncClient,
    place: Place,
    named: Callable[[str], Path],
    engines: list[FakeEngine],
    png_bytes: bytes,
) -> None:
    held = await begin_and_hold(client, engines[0], png_bytes)
    place.put(named("second"))
    reload = asyncio.ensure_future(client.post("/admin/reload", headers=HEADERS))
    while (await client.get("/model")).json()["name"] != "second":
        await asyncio.sleep(0)

    reload.cancel()
    await asyncio.wait({reload})
    engines[0].gate.open()
    again = await client.post("/admin/reload", headers=HEADERS)

    assert (await held).json()["model"]["name"] == "first"
    assert again.status_code == 200
    assert [engine.is_closed for engine in engines] == [True, True, False]


@pytest.mark.anyio
async def test_a_damaged_bundle_is_refused_and_the_old_one_serves_on(
    client: httpx.AsyncClient,
    place: Place,
    named: Callable[[str], Path],
    engines: list[FakeEngine],
    png_bytes: bytes,
) -> None:
    damaged = named("damaged")
    (damaged / "weights.bin").write_bytes(b"other")
    place.put(damaged)

    answer = await client.post("/admin/reload", headers=HEADERS)

    found = await client.post("/detect", content=png_bytes)
    assert (answer.status_code, code_of(answer)) == (409, "reload_refused")
    assert "weights.bin: expected SHA-256" in message_of(answer)
    assert found.json()["model"]["name"] == "first"
    assert [engine.is_closed for engine in engines] == [False]
    assert (
        'detr_reloads_total{model="first",result="refused"} 1.0'
        in (await client.get("/metrics")).text
    )


@pytest.mark.anyio
async def test_a_bundle_whose_engine_is_wrong_is_refused_and_its_engine_released(
    client: httpx.AsyncClient, place: Place, toy_bundle: Path, engines: list[FakeEngine]
) -> None:
    place.put(toy_bundle)  # whose known answers are not those of FakeEngine

    answer = await client.post("/admin/reload", headers=HEADERS)

    assert (answer.status_code, code_of(answer)) == (409, "reload_refused")
    assert "does not give the bundle's known answers" in message_of(answer)
    assert (await client.get("/model")).json()["name"] == "first"
    assert [engine.is_closed for engine in engines] == [False, True]


@pytest.mark.anyio
async def test_a_stopping_service_reloads_no_more(app: FastAPI, client: httpx.AsyncClient) -> None:
    app.state.serving.drain()

    answer = await client.post("/admin/reload", headers=HEADERS)

    assert (answer.status_code, code_of(answer)) == (409, "reload_refused")
    assert "the service is draining" in message_of(answer)


@pytest.mark.anyio
async def test_sighup_changes_nothing_about_a_service_that_stops(
    app: FastAPI, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    app.state.serving.drain()

    app.state.serving.reload_all()
    await asyncio.sleep(0)  # a reload would begin

    metrics = (await client.get("/metrics")).text
    assert 'detr_reloads_total{model="first",result="refused"} 0.0' in metrics
    assert "not reloaded" not in caplog.text


@pytest.mark.anyio
async def test_an_engine_that_is_ready_after_the_stop_began_is_released(
    settings: Settings, fake_bundle: Path
) -> None:
    engines: list[FakeEngine] = []

    def open_engine(*_: object) -> FakeEngine:
        if engines:
            stopping.state.serving.drain()
        engines.append(FakeEngine(max_batch_size=4))
        return engines[-1]

    stopping = create_app(settings.model_copy(update={"admin_key": SecretStr(KEY)}), open_engine)
    async with running(stopping) as client:
        answer = await client.post("/admin/reload", headers=HEADERS)
        are_closed = [engine.is_closed for engine in engines]

    assert (answer.status_code, code_of(answer)) == (409, "reload_refused")
    assert are_closed == [False, True]


@pytest.mark.anyio
async def test_a_reload_that_hangs_does_not_outlive_the_service(settings: Settings) -> None:
    opening = Gate()

    def open_engine(*_: object) -> FakeEngine:
        opening.pass_through()
        return FakeEngine(max_batch_size=4)

    app = create_app(settings.model_copy(update={"admin_key": SecretStr(KEY)}), open_engine)
    async with running(app) as client:
        opening.wait_for_arrival()
        opening.shut()
        reload = asyncio.ensure_future(client.post("/admin/reload", headers=HEADERS))
        await asyncio.to_thread(opening.wait_for_arrival)

    ended, _ = await asyncio.wait({reload}, timeout=1)
    opening.open()
    assert ended == {reload}


@pytest.mark.anyio
async def test_reloads_run_one_after_another(settings: Settings, fake_bundle: Path) -> None:
    both_at_once = threading.Barrier(2, action=lambda: meetings.append("met"))
    meetings: list[str] = []

    def open_engine(*_: object) -> FakeEngine:
        with contextlib.suppress(threading.BrokenBarrierError):
            both_at_once.wait(timeout=0.3)
        return FakeEngine(max_batch_size=4)

    app = create_app(settings, open_engine)
    async with running(app):
        both_at_once.reset()
        first = app.state.serving.begin_reload()
        await asyncio.sleep(0)  # it begins
        second = app.state.serving.begin_reload()
        await asyncio.gather(first, second)

    assert first is not second
    assert meetings == []


@pytest.mark.anyio
async def test_a_reload_that_has_yet_to_begin_stands_for_all_that_are_asked_for(
    settings: Settings,
) -> None:
    num_opened = itertools.count()

    def open_engine(*_: object) -> FakeEngine:
        next(num_opened)
        return FakeEngine(max_batch_size=4)

    app = create_app(settings.model_copy(update={"admin_key": SecretStr(KEY)}), open_engine)
    async with running(app) as client:
        app.state.serving.begin_reload()
        await asyncio.sleep(0)  # it begins
        answers = await asyncio.gather(
            *(client.post("/admin/reload", headers=HEADERS) for _ in range(20))
        )

    assert [answer.status_code for answer in answers] == [200] * 20
    assert next(num_opened) == 3  # at the start, and in two reloads


@pytest.mark.slow
def test_reloads_under_load_lose_no_request(
    start: Callable[..., Process],
    place: Place,
    named: Callable[[str], Path],
    jpeg_bytes: bytes,
) -> None:
    process = start("tests.service.breaking_service", "none", bundle=place.path, admin_key=KEY)
    address = process.start()
    bundles = {name: named(name) for name in ("second", "third")}
    load = Load(address, jpeg_bytes, num_clients=4)
    served = []
    for name in ["second", "third"] * 10:
        place.put(bundles[name])
        answer = httpx.post(f"{address}/admin/reload", headers=HEADERS, timeout=60)
        served.append(answer.json()["name"])

    process.stop()
    load.wait()

    assert served == ["second", "third"] * 10
    assert load.lost == []
    assert set(load.answers) == {200}
    assert process.end()[0] == 0


def test_sighup_reloads_and_a_bad_bundle_is_one_line_of_log(
    start: Callable[..., Process], place: Place, named: Callable[[str], Path], tmp_path: Path
) -> None:
    process = start("tests.service.breaking_service", "none", bundle=place.path)
    address = process.start()

    place.put(named("second"))
    process.popen.send_signal(signal.SIGHUP)
    while httpx.get(f"{address}/model").json()["name"] != "second":
        pass
    place.put(tmp_path / "nowhere")
    process.popen.send_signal(signal.SIGHUP)
    while 'result="refused"' not in httpx.get(f"{address}/metrics").text:
        pass
    ready = httpx.get(f"{address}/readyz")
    process.stop()

    status, log = process.end()
    assert (status, ready.status_code) == (0, 200)
    (line,) = re.findall("not reloaded, the old one keeps serving: (.*)", log)
    assert "no bundle there" in line
    assert "Traceback" not in log


@pytest.mark.anyio
async def test_it_is_told_when_other_models_serve(settings: Settings, place: Place) -> None:
    told: list[str] = []
    changes = {"bundle": place.path, "admin_key": KEY}
    telling = create_app(
        Settings(**settings.model_dump() | changes),
        lambda *_: FakeEngine(),
        on_ready=lambda: told.append(telling.state.serving.state),
    )
    async with running(telling) as client:
        assert told == ["loading"]

        await client.post("/admin/reload", headers=HEADERS)

    assert told == ["loading", "ready"]
