"""The routes of the HTTP API: detection, health, metrics, the model."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bundle.detect import Found
from bundle.manifest import ClassInfo
from bundle.postprocess import Detections, to_detections
from service.description import ANSWERS, BINARY, DETECT_BODY, error_responses
from service.detector import Detector
from service.errors import InvalidRequest, NotAcceptable, UnknownClass
from service.exchange import client_of, model_of, names_of, read_request, run_images, tell_times
from service.metrics import Metrics, Stage, Stopwatch
from service.names import did_you_mean
from service.openapi import query_parameters
from service.render import ImageFormat, render
from service.schemas import (
    CocoResult,
    DetectQuery,
    DetectResponse,
    ErrorResponse,
    Health,
    ModelInfo,
    OutputFormat,
    RunningEngine,
    detections_json,
    image_result,
)
from service.serving import State
from service.uploads import Images, read_images
from service.validation import read_query, require_names

router = APIRouter()
_IMAGE_TYPES = {"image/png": ImageFormat.PNG, "image/jpeg": ImageFormat.JPEG}


@router.post(
    "/detect",
    response_model=DetectResponse | list[CocoResult],
    responses={
        200: {
            "description": "What was found, or the image with it drawn.",
            "content": {
                "application/json": {"examples": ANSWERS},
                **{kind: {"schema": BINARY} for kind in _IMAGE_TYPES},
            },
        },
        **error_responses(),
    },
    openapi_extra={"requestBody": DETECT_BODY, "parameters": query_parameters(DetectQuery)},
    tags=["detection"],
    summary="Detect objects in one or more images",
)
async def detect(request: Request) -> Response:
    """The answer is JSON. If one image was sent and `Accept` asks for `image/png` or `image/jpeg`,
    it is the image with its boxes drawn. A bad image fails the whole request.
    """
    query = read_query(request.query_params)
    # Checked before the body is read, and again after: another bundle may serve by then.
    model = model_of(request, query.model)
    find_labels(query.classes, model.detector.manifest.classes)
    most_detections = _most_detections(query, model.detector)
    stopwatch = Stopwatch()
    images = await read_request(request, read_images, model=model, stopwatch=stopwatch)
    image_format = _wanted_image(request.headers.get("accept", ""), len(images.uploads))
    run = partial(
        run_images, request, images.uploads, model=model, stopwatch=stopwatch, tile_px=query.tile
    )
    select = partial(_select, query=query, most_detections=most_detections, stopwatch=stopwatch)
    if image_format is None:
        write = partial(
            _as_json, select, images=images, output_format=query.format, stopwatch=stopwatch
        )
        detector, response = await run(answer=write)
    else:
        detector, (detections,) = await run(answer=select)
        with stopwatch.stage(Stage.ENCODE):
            draw = partial(
                render,
                detections=detections,
                classes=detector.manifest.classes,
                image_format=image_format,
            )
            content = await detector.decoder.work_on(
                images.uploads[0], draw, client=client_of(request)
            )
            response = Response(content, media_type=f"image/{image_format.lower()}")
    tell_times(request, response, model=detector.name, stopwatch=stopwatch)
    return response


@router.get("/healthz", tags=["operation"], summary="Is the process alive?")
async def healthz() -> Health:
    """200 as long as the process answers at all."""
    return Health(status="ok")


@router.get(
    "/readyz",
    responses={503: {"model": Health}},
    tags=["operation"],
    summary="Are requests welcome?",
)
async def readyz(request: Request, response: Response) -> Health:
    """200 while the service takes requests; 503 while the model loads, while the service stops,
    and after the engine has failed.
    """
    state = request.app.state.serving.state
    response.status_code = 200 if state is State.READY else 503
    return Health(status=state)


@router.get(
    "/metrics", response_class=Response, tags=["operation"], summary="Metrics for Prometheus"
)
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    counted: Metrics = request.app.state.metrics
    # In a thread, as it takes several milliseconds; one at a time, or many would starve the loop.
    async with request.app.state.scrape:
        counted.settle()
        content = await asyncio.to_thread(generate_latest, counted.registry)
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get(
    "/model",
    responses={"4XX": {"model": ErrorResponse, "description": "There is no such model."}},
    tags=["detection"],
    summary="A model that is served",
)
async def model(
    request: Request,
    model: Annotated[str | None, Query(description="Which one; else the first.")] = None,
) -> ModelInfo:
    """A model that is served: its engine, classes, preprocessing, metrics and origin; and the names
    of all.
    """
    detector = model_of(request, model).detector
    require_names(request.query_params, ["model"])
    manifest, engine = detector.manifest, detector.engine_info
    return ModelInfo(
        **detector.model_ref.model_dump(),
        models=names_of(request),
        engine=RunningEngine(**engine._asdict()) if engine else None,
        classes=list(manifest.classes),
        preprocess=manifest.preprocess,
        num_detections=manifest.num_detections,
        max_batch_size=detector.max_batch_size,
        batches=manifest.batches,
        metrics=manifest.metrics,
        threshold=manifest.threshold,
        thresholds=manifest.thresholds,
        provenance=manifest.provenance,
        samples=list(manifest.samples),
    )


# --- from a request to labels, from detections to a response


def find_labels(names: Sequence[str], classes: Sequence[ClassInfo]) -> set[int] | None:
    """Labels of the requested classes, by name or else by id; None if all are wanted."""
    if not names:
        return None
    by_id = {str(info.id): {label} for label, info in enumerate(classes)}
    by_name: dict[str, set[int]] = {}  # several classes of a converted model may have one name
    for label, info in enumerate(classes):
        by_name.setdefault(info.name, set()).add(label)
    labels: set[int] = set()
    for name in names:
        found = by_name.get(name) or by_id.get(name)
        if found is None:
            raise UnknownClass(
                f"unknown class {name[:100]!r}: {did_you_mean(name, by_name)}GET /model lists all "
                "classes by id and name; repeat the parameter for several"
            )
        labels |= found
    return labels


def _select(
    detector: Detector,
    found: Sequence[Found],
    *,
    query: DetectQuery,
    most_detections: int | None,
    stopwatch: Stopwatch,
) -> list[Detections]:
    with stopwatch.stage(Stage.POST):
        labels_kept = find_labels(query.classes, detector.manifest.classes)
        lowest_scores = detector.manifest.lowest_scores(query.threshold)
        return [
            to_detections(
                *one,
                threshold=lowest_scores,
                top_k=most_detections,
                labels_kept=labels_kept,
                nms_iou=query.nms_iou,
            )
            for one in found
        ]


def _wanted_image(accept: str, num_images: int) -> ImageFormat | None:
    """The image type that the Accept header prefers over JSON, if any; ties go to the first."""
    best_type, best_quality = "application/json", 0.0
    for part in accept.lower().split(","):
        media_type, *parameters = (text.strip() for text in part.split(";"))
        quality = next((_quality(text[2:]) for text in parameters if text.startswith("q=")), 1.0)
        is_known = media_type in _IMAGE_TYPES or media_type in ("application/json", "*/*")
        if is_known and quality > best_quality:
            best_type, best_quality = media_type, quality
    if best_type not in _IMAGE_TYPES:
        return None
    if num_images != 1:
        raise NotAcceptable(
            f"expected one image with Accept: {best_type}, got {num_images}; send them "
            "one by one, or accept application/json"
        )
    return _IMAGE_TYPES[best_type]


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _most_detections(query: DetectQuery, detector: Detector) -> int | None:
    try:
        return query.most_detections(detector.manifest)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _as_json(
    select: Callable[[Detector, list[Found]], list[Detections]],
    detector: Detector,
    found: list[Found],
    *,
    images: Images,
    output_format: OutputFormat,
    stopwatch: Stopwatch,
) -> Response:
    detections = select(detector, found)
    with stopwatch.stage(Stage.ENCODE):
        results = [
            image_result(
                one,
                image_id=image_id,
                file_name=upload.file_name,
                size=geometry.original,
                classes=detector.manifest.classes,
            )
            for one, image_id, upload, (_, geometry) in zip(
                detections, images.image_ids, images.uploads, found, strict=True
            )
        ]
        content = detections_json(results, model=detector.model_ref, output_format=output_format)
        return Response(content, media_type="application/json")
