"""The client behind a proxy: who a trusted proxy says it is, if that is an address."""

from ipaddress import IPv6Address, ip_address
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_PROXY = "detr.proxy"  # in a scope: the address that the request came from


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
            scope["client"] = proxy if address is None else (address, port)
        await self._app(scope, receive, send)


def _address(text: str) -> str | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Address(int(address)))  # a zone may be any text
