"""Who may ask: API keys, web pages of other origins, HEAD."""

import hmac
from pathlib import Path

import httpx
import pytest

from service.access import read_keys
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import code_of, message_of, running

pytestmark = pytest.mark.anyio

KEY, OTHER_KEY = "k" * 16, "noch ein Schlüssel von uns"
HEALTH = ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"]


@pytest.fixture
def guarded(settings: Settings, tmp_path: Path) -> Settings:
    file = tmp_path / "keys"
    file.write_text(f"\ufeff{KEY}\n# a comment\n\n  {OTHER_KEY}\n")
    return settings.model_copy(update={"api_keys_file": file})


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {OTHER_KEY}"},
        {"X-API-Key": OTHER_KEY},
    ],
)
async def test_a_known_key_opens_every_path(
    guarded: Settings, engine: FakeEngine, headers: dict[str, str], png_bytes: bytes
) -> None:
    in_utf8 = httpx.Headers(headers, encoding="utf-8")

    async with running(create_app(guarded, lambda *_: engine)) as client:
        answers = [
            await client.post("/detect", content=png_bytes, headers=in_utf8),
            await client.get("/model", headers=in_utf8),
        ]

    assert [answer.status_code for answer in answers] == [200, 200]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY}, {"X-API-Key": "# a comment"}],
)
async def test_without_a_known_key_only_health_is_answered(
    guarded: Settings, engine: FakeEngine, headers: dict[str, str]
) -> None:
    async with running(create_app(guarded, lambda *_: engine)) as client:
        detect = await client.post("/detect", content=b"x", headers=headers)
        others = [
            (await client.get(path, headers=headers)).status_code
            for path in ["/", "/docs", "/openapi.json", "/model", "/metrics", "/none", "/v2"]
        ]
        health = [(await client.get(path, headers=headers)).status_code for path in HEALTH]

    assert (detect.status_code, code_of(detect)) == (401, "unauthorized")
    assert detect.headers["www-authenticate"] == "Bearer"
    assert "x-request-id" in detect.headers
    assert others == [401] * 7
    assert health == [200] * 4


@pytest.mark.parametrize("key", [KEY, OTHER_KEY, "no key of ours"])
async def test_every_key_is_compared_in_constant_time_whichever_was_sent(
    guarded: Settings, engine: FakeEngine, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    async with running(create_app(guarded, lambda *_: engine)) as client:
        await client.get("/model", headers=httpx.Headers({"X-API-Key": key}, encoding="utf-8"))

    assert compared == [(32, 32)] * 2  # digests: the length of a key does not show either


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# none\n", "one key per line .*got none"),
        ("short\n", "at least 16"),
        ("key of 16 or \0 more\n", "control characters"),
    ],
)
async def test_a_file_without_good_keys_is_refused_at_start(
    settings: Settings, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "keys").write_text(text)

    with pytest.raises(ValueError, match=message):
        create_app(settings.model_copy(update={"api_keys_file": tmp_path / "keys"}))


def test_a_device_holds_no_keys() -> None:
    with pytest.raises(ValueError, match=r"DETR_API_KEYS_FILE: cannot read /dev/null: .*a device"):
        read_keys(Path("/dev/null"))


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    for name, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig")):
        (tmp_path / name).write_text("0123456789abcdef\n", encoding=encoding)

    assert read_keys(tmp_path / "marked") == read_keys(tmp_path / "plain")


@pytest.mark.parametrize("path", [*HEALTH, "/", "/docs", "/model", "/samples/none", "/page/app.js"])
async def test_whatever_may_be_got_may_be_asked_with_head(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level("DEBUG", "service.access")

    whole = await client.get(path)
    response = await client.head(path)

    assert response.status_code == whole.status_code
    assert response.headers["Content-Length"] == whole.headers["Content-Length"]
    assert response.content == b""
    assert f"method=HEAD path={path} " in caplog.messages[-1]


async def test_what_may_only_be_posted_may_not_be_asked_with_head(
    client: httpx.AsyncClient,
) -> None:
    response = await client.head("/detect")

    assert (response.status_code, response.headers["Allow"]) == (405, "POST")


async def test_pages_of_named_origins_may_ask(settings: Settings, engine: FakeEngine) -> None:
    named = settings.model_copy(update={"cors_origins": "https://a.test, https://b.test"})
    asks = {"Access-Control-Request-Headers": "X-A", "Access-Control-Request-Private-Network": "1"}

    async with running(create_app(named, lambda *_: engine)) as client:
        for method in ("GET", "HEAD", "POST"):
            answer = await client.options(
                "/detect",
                headers={
                    "Origin": "https://b.test",
                    "Access-Control-Request-Method": method,
                    **asks,
                },
            )

            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "https://b.test"


async def test_a_page_that_may_ask_reads_an_unforeseen_error(
    settings: Settings, engine: FakeEngine
) -> None:
    named = settings.model_copy(update={"cors_origins": "https://a.test"})
    app = create_app(named, lambda *_: engine)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    async with running(app) as client:
        of_page, of_other, of_none = [
            await client.get("/broken", headers=headers)
            for headers in ({"Origin": "https://a.test"}, {"Origin": "https://c.test"}, {})
        ]

    for answer in (of_page, of_other, of_none):
        assert (answer.status_code, code_of(answer)) == (500, "internal_error")
        assert "x-request-id" in answer.headers
    assert of_page.headers["access-control-allow-origin"] == "https://a.test"
    assert "access-control-allow-origin" not in {*of_other.headers, *of_none.headers}


@pytest.mark.parametrize(
    ("origin", "method"), [("https://c.test", "POST"), ("null", "GET"), ("https://a.test", "PUT")]
)
async def test_a_page_that_may_not_ask_is_told_so(
    guarded: Settings, engine: FakeEngine, origin: str, method: str
) -> None:
    named = guarded.model_copy(update={"cors_origins": "https://a.test"})
    asks = {"Origin": origin, "Access-Control-Request-Method": method}

    async with running(create_app(named, lambda *_: engine)) as client:
        answer = await client.options("/detect", headers=asks)
        metrics = await client.get("/metrics", headers={"X-API-Key": KEY})

    assert (answer.status_code, code_of(answer)) == (403, "forbidden")
    assert f"got {method!r} from {origin!r}" in message_of(answer)
    assert "access-control-allow-origin" not in answer.headers
    assert "x-request-id" in answer.headers
    assert 'detr_rejects_total{code="forbidden"} 1.0' in metrics.text


async def test_a_page_may_ask_what_is_allowed_before_it_sends_its_key(
    guarded: Settings, engine: FakeEngine
) -> None:
    named = guarded.model_copy(update={"cors_origins": "https://a.test"})
    origin = {"Origin": "https://a.test"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-API-Key"}

    async with running(create_app(named, lambda *_: engine)) as client:
        preflight = await client.options("/detect", headers=origin | asks)
        refused = await client.post("/detect", content=b"x", headers=origin)

    assert preflight.status_code == 200
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.test"


async def test_what_is_answered_before_its_route_is_counted_under_it(
    guarded: Settings, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    named = guarded.model_copy(update={"cors_origins": "https://a.test"})
    asks = {"Origin": "https://a.test", "Access-Control-Request-Method": "POST"}
    app = create_app(named, lambda *_: engine)

    with caplog.at_level("INFO", "service.access"):
        async with running(app) as client:
            await client.post("/detect/", content=b"x")
            await client.post("/v2/models/any/infer", content=b"x")
            await client.get("/metrics")
            await client.get("/nothing")
            await client.options("/v1/vision/detection", headers=asks)

    app.state.metrics.settle()
    (family,) = app.state.metrics.requests.collect()
    counted = {(one.labels["path"], one.labels["status"]) for one in family.samples}
    assert counted == {
        ("/detect", "401"),
        ("/v2/models/{name}/infer", "401"),
        ("/metrics", "401"),
        ("other", "401"),
        ("/v1/vision/detection", "200"),
    }
    assert "path=/metrics status=401" in caplog.text  # else the log would not show who has no key


@pytest.mark.parametrize(
    "origins",
    [
        "a.test",
        "https://bücher.test",
        "https://a.test/",
        "https://a.test/page",
        "HTTPS://A.test",
        "https://b.test, a b",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(fake_bundle: Path, origins: str) -> None:
    with pytest.raises(ValueError, match="expected origins as browsers send them"):
        Settings(bundle=fake_bundle, cors_origins=origins)


@pytest.mark.parametrize("origins", ["*", "null", "http://[::1]:8080,chrome-extension://abc"])
def test_an_origin_that_a_browser_sends_is_taken(fake_bundle: Path, origins: str) -> None:
    assert Settings(bundle=fake_bundle, cors_origins=origins).cors_origins == origins
