"""The steps shared by every route that detects: refuse early, read, run, report times."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from fastapi.responses import Response
from starlette.requests import ClientDisconnect, Request

from bundle.detect import Found
from service.boundary import answer_unless_gone
from service.clients import counted_client
from service.detector import Detector
from service.errors import ClientGone, UnsupportedMediaType
from service.metrics import Metrics, Stage, Stopwatch
from service.served_model import Answered, ServedModel
from service.serving import Serving, State
from service.settings import Settings
from service.uploads import Upload
from service.validation import require_once

Sent = TypeVar("Sent")
Answer = TypeVar("Answer")


def model_of(request: Request, name: str | None = None) -> ServedModel:
    """The model of this name; without a name, the first.

    Raises:
        UnknownModel: no model has that name.
        InvalidRequest: a parameter of the query is given twice.
    """
    require_once(request.query_params)
    return _serving(request).model(name)


def names_of(request: Request) -> list[str]:
    """The names of all served models."""
    return _serving(request).names


def client_of(request: Request) -> str | None:
    """Whom the request counts with; clients take turns."""
    return counted_client(request.client)


def is_ready(request: Request) -> bool:
    """Whether the service takes requests."""
    return _serving(request).state is State.READY


async def read_request(
    request: Request,
    read: Callable[[Request, Settings], Awaitable[Sent]],
    *,
    model: ServedModel,
    stopwatch: Stopwatch,
) -> Sent:
    """Read the body with `read`, unless the request can be refused without reading it.

    Raises:
        NotReady, Overloaded: see `Detector.refuse_if_full` and `ImageDecoder.refuse_if_late`.
        ClientGone: the client closed the connection before the body was whole.
        UnsupportedMediaType: the body is compressed.
    """
    encoding = request.headers.get("content-encoding", "").lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"expected a body without Content-Encoding, got {encoding[:100]!r}; send it as it is"
        )
    detector = model.detector
    detector.decoder.refuse_if_late(client_of(request))
    detector.refuse_if_full(client_of(request))
    request.state.stopwatch = stopwatch
    with stopwatch.stage(Stage.READ):
        try:
            return await read(request, request.app.state.settings)
        except ClientDisconnect as error:
            raise ClientGone(
                "the client closed the connection before its body was whole"
            ) from error


async def run_images(
    request: Request,
    uploads: Sequence[Upload],
    *,
    answer: Callable[[Detector, list[Found]], Answer],
    model: ServedModel,
    stopwatch: Stopwatch,
    tile_px: int | None = None,
) -> Answered[Answer]:
    """Run the detector on the images; says which detector it was.

    Args:
        answer: see `Detector.detect`; it also gets the detector.

    Raises:
        ClientGone: the client disconnected; the images are not run.
        As `Detector.detect`.
    """
    request.state.log_fields["images"] = len(uploads)
    request.state.settle_body(sum(upload.num_bytes for upload in uploads))
    work = model.detect(
        uploads, stopwatch, answer=answer, client=client_of(request), tile_px=tile_px
    )
    return await answer_unless_gone(request, work)


def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


def tell_times(request: Request, response: Response, *, model: str, stopwatch: Stopwatch) -> None:
    """Report the time of each stage to the metrics, and to the client as Server-Timing."""
    metrics: Metrics = request.app.state.metrics
    seconds = metrics.stage_seconds
    observe = partial(stopwatch.observe, lambda stage, s: seconds.labels(model, stage).observe(s))
    metrics.later(observe)
    response.headers["Server-Timing"] = stopwatch.server_timing
