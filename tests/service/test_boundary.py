"""What every request gets: an id, one line of log, and an answer whatever goes wrong."""

import re
from urllib.parse import urljoin

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import code_of, running

pytestmark = pytest.mark.anyio


async def test_a_request_id_is_taken_or_made(client: httpx.AsyncClient) -> None:
    taken = await client.get("/healthz", headers={"X-Request-Id": "abc-1"})
    made = await client.get("/healthz", headers={"X-Request-Id": "no spaces\tor such"})

    assert taken.headers["X-Request-Id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{32}", made.headers["X-Request-Id"])


async def test_each_request_is_one_line_of_log(
    client: httpx.AsyncClient, png_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.access")

    await client.post("/detect", content=png_bytes, headers={"X-Request-Id": "abc-1"})
    await client.post("/detect?top_k=0", content=png_bytes)

    first, second = caplog.messages
    assert re.search("path=/detect status=200 duration_ms=.* request_id=abc-1 .*images=1", first)
    assert re.search("status=422 .*code=invalid_request", second)


async def test_a_client_cannot_forge_a_line_of_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.access")

    await client.get("/%0Aerror%1B[2J status=200")

    (line,) = caplog.messages
    assert line.isprintable()
    assert r'path="/\nerror\u001b[2J status=200" status=404' in line


async def test_an_unforeseen_error_is_an_internal_one_without_its_trace(
    settings: Settings, png_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings, lambda *_: FakeEngine())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret")

    async with running(app) as client:
        response = await client.get("/broken")

    assert (response.status_code, code_of(response)) == (500, "internal_error")
    assert "secret" not in response.text
    assert "a secret" in caplog.text


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    missing = await client.get("/missing")
    wrong = await client.get("/detect")

    assert (missing.status_code, code_of(missing)) == (404, "not_found")
    assert (wrong.status_code, code_of(wrong)) == (405, "method_not_allowed")
    assert wrong.headers["Allow"] == "POST"


@pytest.mark.parametrize("path", ["/model", "/healthz", "/metrics", "/docs", "/v2/models/toy"])
@pytest.mark.parametrize("prefix", ["http://test", "https://behind.a.proxy/prefix"])
async def test_a_path_with_a_slash_at_its_end_leads_to_the_one_without(
    client: httpx.AsyncClient, path: str, prefix: str
) -> None:
    response = await client.get(f"{path}/?model=toy", headers={"Host": "not.ours"})

    seen = urljoin(f"{prefix}{path}/", response.headers["Location"])
    assert (response.status_code, seen) == (307, f"{prefix}{path}?model=toy")


@pytest.mark.parametrize("path", ["/missing/", "/%2Fevil.test/", "/%0d%0aX:%20y/"])
async def test_a_path_that_is_not_ours_leads_nowhere(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert (response.status_code, code_of(response)) == (404, "not_found")
    assert "Location" not in response.headers
