"""Serves the page, its assets, the API docs and the sample images to browsers."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.errors import NotFound
from service.exchange import model_of
from service.whole_file import WholeFile

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


@router.get("/")
async def index(request: Request) -> Response:
    """The page for trying the model on an image."""
    return _html(request, "index.html")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The API docs, built from local files only."""
    # Swagger UI styles its elements inline.
    return _html(request, "docs.html", more_styles=" 'unsafe-inline'")


@router.get("/openapi.json")
async def description(request: Request) -> Response:
    """The description of the API."""
    return Response(request.app.description_json(), media_type="application/json")


@router.get("/page/{name}")
async def asset(request: Request, name: str) -> Response:
    """A script, style sheet or icon of the two pages."""
    if name not in _ASSETS:
        raise NotFound(f"the page has no file {name[:100]!r}")
    return _whole(request, _ASSETS[name], headers={"Cache-Control": "no-cache"})


@router.get("/samples/{name:path}")
async def sample(request: Request, name: str, *, model: str | None = None) -> Response:
    """A sample image of the bundle of a model, or of the first."""
    bundle = model_of(request, model).detector.bundle
    path = f"samples/{name}"
    if path not in bundle.manifest.samples:
        raise NotFound(f"the bundle has no {path[:100]!r}; GET /model lists its samples")
    return _whole(request, bundle.directory / path)


def _html(request: Request, name: str, *, more_styles: str = "") -> WholeFile:
    headers = {
        "Content-Security-Policy": _POLICY.format(more_styles),
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return _whole(request, _PAGE / name, headers=headers)


def _whole(request: Request, path: Path, *, headers: Mapping[str, str] | None = None) -> WholeFile:
    return WholeFile(path, request.app.state.files, headers=headers)
