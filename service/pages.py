"""Serves the page, its assets, the API docs and the sample images to browsers."""

import os
from importlib import resources
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response
from starlette.datastructures import Headers
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Receive, Scope, Send

from service.errors import NotFound
from service.exchange import model_of

router = APIRouter(include_in_schema=False)

_PAGE = Path(__file__).parent / "page"
_SWAGGER_UI = Path(str(resources.files("fastapi_offline"))) / "static"
_ASSETS = {  # every static file that is served, by its name under /page/
    "app.js": _PAGE / "app.js",
    "style.css": _PAGE / "style.css",
    "favicon.svg": _PAGE / "favicon.svg",
    "docs.js": _PAGE / "docs.js",
    "swagger-ui.js": _SWAGGER_UI / "swagger-ui-bundle.js",
    "swagger-ui.css": _SWAGGER_UI / "swagger-ui.css",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{}; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class WholeFile(FileResponse):
    """A file, or 304 if the client has it.

    Without ranges, which nobody needs of files this small: Starlette's own answers to impossible
    ranges are plain text.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        self.stat_result = os.stat(self.path)
        self.set_stat_headers(self.stat_result)
        if StaticFiles().is_not_modified(self.headers, Headers(scope=scope)):
            await NotModifiedResponse(self.headers)(scope, receive, send)
            return
        self.headers["Accept-Ranges"] = "none"
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


@router.get("/")
async def index() -> Response:
    """The page for trying the model on an image."""
    return _html("index.html", "")


@router.get("/docs")
async def docs() -> Response:
    """The API docs, built from local files only."""
    return _html("docs.html", " 'unsafe-inline'")  # Swagger UI styles its elements inline


@router.get("/openapi.json")
async def description(request: Request) -> Response:
    """The description of the API."""
    return Response(request.app.description_json(), media_type="application/json")


@router.get("/page/{name}")
async def asset(name: str) -> FileResponse:
    """A script, style sheet or icon of the two pages."""
    if name not in _ASSETS:
        raise NotFound(f"the page has no file {name[:100]!r}")
    return WholeFile(_ASSETS[name], headers={"Cache-Control": "no-cache"})


@router.get("/samples/{name:path}")
async def sample(request: Request, name: str, *, model: str | None = None) -> FileResponse:
    """A sample image of the bundle of a model, or of the first."""
    bundle = model_of(request, model).detector.bundle
    path = f"samples/{name}"
    if path not in bundle.manifest.samples:
        raise NotFound(f"the bundle has no {path[:100]!r}; GET /model lists its samples")
    file = bundle.directory / path
    if not file.is_file():
        raise NotFound(f"{path[:100]!r} has been removed since the bundle was loaded")
    return WholeFile(file)


def _html(name: str, more_styles: str) -> WholeFile:
    headers = {
        "Content-Security-Policy": _POLICY.format(more_styles),
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return WholeFile(_PAGE / name, headers=headers)
