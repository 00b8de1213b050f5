"""Who a client is: proxies that are named, and whom an address counts with."""

from pathlib import Path

import httpx
import pytest
from fastapi import Request

from service.__main__ import Server
from service.app import create_app
from service.clients import counted_client
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import running

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("proxies", "client_address"),
    [("", "10.0.0.7"), ("10.0.0.0/8", "192.0.2.9"), ("10.9.9.9", "10.0.0.7")],
)
async def test_forwarded_addresses_are_believed_from_named_proxies_only(
    settings: Settings, engine: FakeEngine, proxies: str, client_address: str
) -> None:
    named = settings.model_copy(update={"trusted_proxies": proxies})

    assert await _client_of(named, engine, "192.0.2.9") == client_address


@pytest.mark.parametrize(
    ("forwarded", "client_address"),
    [
        ("192.0.2.9:4711", "192.0.2.9"),
        ("6.6.6.6, 192.0.2.9 , 10.0.0.8", "192.0.2.9"),
        ("[2001:DB8::0:1]:443", "2001:db8::1"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("fe80::1%eth0", "fe80::1"),
        ("fe80::1%" + "x" * 3000, "fe80::1"),
    ],
)
async def test_a_forwarded_address_is_written_in_one_way(
    settings: Settings, engine: FakeEngine, forwarded: str, client_address: str
) -> None:
    named = settings.model_copy(update={"trusted_proxies": "10.0.0.0/8"})

    assert await _client_of(named, engine, forwarded) == client_address


@pytest.mark.parametrize(
    "forwarded",
    ["", ",", "unknown", "_hidden", "192.0.2.9:http", "192.0.2.999", "[::1", "a\tb=c client=x",
     "192.0.2.9, junk", "x" * 10_000, "1," * 5_000, "192.0.2.9/32", "3221226001", "\xb2.0.2.9"],
)  # fmt: skip
async def test_what_is_forwarded_but_no_address_is_the_proxy_s_own_request(
    settings: Settings, engine: FakeEngine, forwarded: str
) -> None:
    named = settings.model_copy(update={"trusted_proxies": "10.0.0.0/8"})

    assert await _client_of(named, engine, forwarded) == "10.0.0.7"


async def _client_of(settings: Settings, engine: FakeEngine, forwarded: str) -> str:
    """Whose request the service takes it for, if the proxy 10.0.0.7 forwards it."""
    app, seen = create_app(settings, lambda *_: engine), list[str]()

    @app.get("/seen")
    async def see(request: Request) -> None:
        assert request.client is not None
        seen.append(request.client.host)

    server = Server(app, settings)
    server.config.load()
    transport = httpx.ASGITransport(server.config.loaded_app, client=("10.0.0.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.get("/seen", headers=[(b"X-Forwarded-For", forwarded.encode("latin-1"))])
    (one,) = seen
    return one


def test_a_proxy_that_is_not_an_address_is_refused(fake_bundle: Path) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 network"):
        Settings(bundle=fake_bundle, trusted_proxies="proxy.test")


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.9", "192.0.2.9"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:DB8:0:0:ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_addresses_of_one_subscriber_count_as_one_client(address: str, counted: str) -> None:
    assert counted_client((address, 1)) == counted


@pytest.mark.parametrize(("address", "status"), [("2001:db8::9", 503), ("2001:db9::9", 200)])
async def test_a_subscriber_has_one_share_of_the_queue_for_all_addresses(
    settings: Settings, engine: FakeEngine, png_bytes: bytes, address: str, status: int
) -> None:
    app = create_app(settings, lambda *_: engine)
    transport = httpx.ASGITransport(app, client=(address, 1))

    async with (
        running(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        detector = app.state.serving.model().detector
        with detector.admit(4, client=counted_client(("2001:db8::1", 1))):
            response = await client.post("/detect", content=png_bytes)

    assert response.status_code == status  # the other client gives way to one with less
