"""Who may ask: clients with an API key, if keys are configured, and web pages of named origins."""

import hashlib
import hmac
from pathlib import Path

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bundle.regular_file import require_file
from service.error_bodies import answer_error
from service.errors import Forbidden, Unauthorized

LEAST_CHARACTERS = 16  # in a key
_OPEN_PATHS = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
_ADMIN_PREFIX = "/admin/"  # checks the administrator's key instead


def read_keys(path: Path) -> list[bytes]:
    """The digests of the keys in a file: one key per line; empty lines and # comments are skipped.

    Raises:
        ValueError: the file cannot be read, holds no key, or holds one that is too short or
            cannot be sent.
    """
    try:
        text = require_file(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"DETR_API_KEYS_FILE: cannot read {path}: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"DETR_API_KEYS_FILE: expected one key per line in {path}, got none")
    if min(map(len, keys)) < LEAST_CHARACTERS:
        raise ValueError(
            f"DETR_API_KEYS_FILE: expected keys of at least {LEAST_CHARACTERS} characters in "
            f"{path}, got a shorter one; openssl rand -hex 32 makes one"
        )
    if not all(key.isprintable() for key in keys):
        raise ValueError(
            f"DETR_API_KEYS_FILE: expected keys without control characters in {path}, got one that "
            "no client could send in a header"
        )
    return [_digest(key.encode()) for key in keys]


class KeyCheck:
    """ASGI middleware that answers 401 to requests without a key, except for health checks."""

    def __init__(self, app: ASGIApp, *, keys: list[bytes]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it carries a key."""
        if scope["type"] != "http" or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        error = Unauthorized(
            "expected a valid API key; send it as the header "
            "Authorization: Bearer KEY, or X-API-Key: KEY"
        )
        await answer_error(Request(scope), error)(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        path = scope["path"]
        return path in _OPEN_PATHS or path.startswith(_ADMIN_PREFIX) or self._has_key(scope)

    def _has_key(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        given = bearer_of(headers) or headers.get("x-api-key", "")
        digest = _digest(given.encode("latin-1"))  # as HTTP's headers are decoded
        # Compares digests of equal length, and all of them, so that timing reveals nothing.
        return sum([hmac.compare_digest(digest, key) for key in self._keys]) > 0


class OriginCheck(CORSMiddleware):
    """Starlette's CORS middleware; a page that may not ask is told so as in any other error."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a page's question whether it may ask; pass on everything else."""
        try:
            await super().__call__(scope, receive, send)
        except Forbidden as error:
            await answer_error(Request(scope), error)(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Raises Forbidden if the page may not ask."""
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            method, origin = (
                request_headers[name][:200] for name in ("access-control-request-method", "origin")
            )
            raise Forbidden(
                f"expected {', '.join(self.allow_methods)} from a page of an origin that "
                f"DETR_CORS_ORIGINS names, got {method!r} from {origin!r}"
            )
        return response


def bearer_of(headers: Headers) -> str:
    """The key in `Authorization: Bearer KEY`, or no text."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
