"""The application: what it owns, and its life from loading to drained."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from service import admin, openapi, pages, routes, routes_deepstack, routes_inference
from service.access import KeyCheck, OriginCheck, read_keys
from service.body_limits import BodyLimits
from service.boundary import REQUEST_ID, Boundary
from service.client_memory import ClientMemory
from service.clients import ForwardedClients
from service.error_bodies import answer_error
from service.errors import MethodNotAllowed, NotFound, ServiceError
from service.image_decoder import client_memory
from service.metrics import Metrics
from service.route_labels import OTHER, RouteLabels
from service.schemas import ModelRef
from service.serving import Serving
from service.settings import Settings, split_commas
from service.startup import OpenEngine, open_served
from service.validation import invalid_request
from service.whole_file import FileThread

if TYPE_CHECKING:
    from service.tracing import Traces

API_VERSION = "1.0.0"


class App(FastAPI):
    """FastAPI, with a description that knows what is served."""

    _described: tuple[ModelRef, ...] = ()
    _description_json = b""

    def openapi(self) -> dict[str, Any]:
        """See `service.openapi`; made once for what is served, since making it takes long."""
        serving: Serving = self.state.serving
        served = tuple(model.detector.model_ref for model in serving.models)
        if served != self._described:
            self.openapi_schema = None
            openapi.complete(super().openapi(), serving=serving, settings=self.state.settings)
            self._description_json = json.dumps(super().openapi(), ensure_ascii=False).encode()
            self._described = served
        return super().openapi()

    def description_json(self) -> bytes:
        """The same as JSON, which is not written anew for every request."""
        self.openapi()
        return self._description_json


def create_app(
    settings: Settings,
    open_engine: OpenEngine = open_served,
    *,
    on_failure: Callable[[], None] = lambda: None,
    on_ready: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The app for the bundles of the settings.

    The port may open at once: the engines are opened and warmed up in the background, and /readyz
    is red until all can run.

    Args:
        settings: the only configuration; nothing else is read from the environment.
        open_engine: opens the engine of a bundle.
        on_failure, on_ready: see `Serving`, which is in `app.state.serving`.

    Raises:
        ValueError: a bundle is missing or damaged, the GPU cannot decode, or what sends traces is
            not installed.
    """
    app = App(
        title="detr-serve",
        summary="Object detection with Deformable DETR",
        version=API_VERSION,
        openapi_url=None,  # see service.pages, as for the docs: FastAPI's load scripts from a CDN
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,  # see `_answer_http_exception`
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.scrape = asyncio.Lock()  # held while the metrics are written
    app.state.files = FileThread()
    app.state.traces = _open_traces(settings)
    memory = client_memory(settings)
    app.state.serving = Serving(
        settings,
        metrics=app.state.metrics,
        memory=memory,
        open_engine=open_engine,
        on_failure=on_failure,
        on_ready=on_ready,
    )
    app.state.is_stopping = False
    modules = (routes, routes_deepstack, routes_inference, admin, pages)
    routers = [module.router for module in modules]
    # FastAPI describes it and Starlette calls it: it reads the request itself, and FastAPI would
    # take another 0.1 ms of a lone request.
    app.router.routes.append(Route("/detect", routes.detect, methods=["POST"]))
    for router in routers:
        app.router.routes.extend(router.routes)
    app.state.labels = RouteLabels(route for router in routers for route in router.routes)
    app.add_exception_handler(ServiceError, _answer_service_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    _add_middleware(app, settings, memory)
    return app


def stop_taking_requests(app: FastAPI) -> None:
    """Turn /readyz red and ask clients to disconnect; requests are still answered."""
    app.state.is_stopping = True
    app.state.serving.drain()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.startup = asyncio.create_task(app.state.serving.start())
    yield
    app.state.startup.cancel()
    await asyncio.wait([app.state.startup])
    async with asyncio.TaskGroup() as closing:
        closing.create_task(app.state.serving.close())
        if app.state.traces is not None:
            closing.create_task(asyncio.to_thread(app.state.traces.close))


def _add_middleware(app: FastAPI, settings: Settings, memory: ClientMemory) -> None:
    """What a request passes before its route; the middleware that is added last comes first."""
    if settings.api_keys_file is not None:
        keys = read_keys(settings.api_keys_file)
        app.add_middleware(KeyCheck, keys=keys)
    check_origin: Callable[[ASGIApp], ASGIApp] = partial(
        OriginCheck,
        allow_origins=split_commas(settings.cors_origins),
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["Retry-After", "Server-Timing", REQUEST_ID],
    )
    if settings.cors_origins:
        app.add_middleware(check_origin)
    app.add_middleware(
        Boundary,
        metrics=app.state.metrics,
        labels=app.state.labels,
        limits=BodyLimits.of(settings, memory),
        around_errors=check_origin if settings.cors_origins else lambda answer: answer,
        on_answer=app.state.traces.record if app.state.traces else None,
    )
    if settings.trusted_proxies:
        app.add_middleware(ForwardedClients, proxies=split_commas(settings.trusted_proxies))


def _open_traces(settings: Settings) -> "Traces | None":
    if settings.otlp_endpoint is None:
        return None
    try:
        from service.tracing import Traces
    except ModuleNotFoundError as error:
        raise ValueError(
            f"DETR_OTLP_ENDPOINT is set, and {error.name} is not installed: "
            "pip install -c constraints.txt --group tracing"
        ) from error
    return Traces(str(settings.otlp_endpoint))


async def _answer_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return answer_error(request, error)


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return answer_error(request, invalid_request(error.errors()))


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Answer the router's own errors in the same form as ours.

    A path that is one of ours but for a slash at its end is redirected there, relative to itself:
    which scheme, host and prefix the client sees, only a proxy knows.
    """
    assert isinstance(error, HTTPException)
    plain = request.scope["path"].removesuffix("/")
    is_ours = plain != request.scope["path"] and request.app.state.labels.of(plain) != OTHER
    if error.status_code == 404 and is_ours:
        query = f"?{request.url.query}" if request.url.query else ""
        location = f"../{quote(plain.rpartition('/')[2])}{query}"
        return Response(status_code=307, headers={"Location": location})
    kind = MethodNotAllowed if error.status_code == 405 else NotFound
    message = f"{request.method} {request.url.path[:200]}: {error.detail}; see /docs"
    response = answer_error(request, kind(message))
    response.headers.update(error.headers or {})
    return response
