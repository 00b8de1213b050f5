"""Who a client is: behind a proxy, who a trusted proxy says it is; and whom it counts with."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_PROXY = "detr.proxy"  # in a scope: the address that the request came from
_SUBSCRIBER_BITS = 64  # of an IPv6 address; whoever has one address has all that begin with them


class ForwardedClients:
    """ASGI middleware that believes X-Forwarded-For and X-Forwarded-Proto of trusted proxies.

    uvicorn takes any text for a client. Clients are told apart by it, so whoever could invent names
    would have the turns and the memory of as many clients. Here, the client is an address, written
    in one way and without a zone; if the header has none, it is the proxy.
    """

    def __init__(self, app: ASGIApp, *, proxies: list[str]) -> None:
        self._app = app
        checked: Any = self._check  # uvicorn's types are not Starlette's
        self._believe: Any = ProxyHeadersMiddleware(checked, proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as that of its client."""
        if scope["type"] == "http":
            await self._believe({**scope, _PROXY: scope.get("client")}, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        proxy = scope.pop(_PROXY)
        if scope.get("client") != proxy:
            host, port = scope["client"]
            address = _address(host)
            scope["client"] = proxy if address is None else (str(address), port)
        await self._app(scope, receive, send)


def counted_client(client: tuple[str, int] | None) -> str | None:
    """Whom a client, (address, port), counts with: turns and limits are for all of them together.

    In IPv4, that is its address. In IPv6, it is its network of 64 bits.
    """
    return _counted(client[0]) if client else None


@lru_cache(maxsize=1024)  # asked several times in each request
def _counted(host: str) -> str:
    address = _address(host)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), _SUBSCRIBER_BITS), strict=False))
    return host if address is None else str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address without a zone, which may be any text."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address
