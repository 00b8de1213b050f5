"""POST /v1/vision/detection: detections for clients of DeepStack and CodeProject.AI."""

import re
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from bundle.detect import Found
from bundle.manifest import ClassInfo
from bundle.postprocess import Detections, to_detections
from service.description import BINARY
from service.detector import Detector
from service.errors import InvalidRequest, NoImage
from service.exchange import model_of, read_request, run_images, tell_times
from service.form import Form, FormFile, read_form
from service.metrics import Stage, Stopwatch
from service.schemas import SCORE_DIGITS, DetectQuery
from service.settings import Settings
from service.uploads import Upload
from service.validation import refuse_passed_over

router = APIRouter()
_IMAGE_FIELD = "image"
_THRESHOLD_FIELD = "min_confidence"
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*", re.IGNORECASE)
_MOST_SHOWN = 5
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [_IMAGE_FIELD],
                "properties": {
                    _IMAGE_FIELD: BINARY,
                    _THRESHOLD_FIELD: {
                        "type": "number",
                        "minimum": 0,
                        "maximum": 1,
                        "description": "The model's own for each class, unless it is given.",
                    },
                },
            }
        }
    },
}


class Prediction(BaseModel):
    """One object; its corners in whole pixels of the image as displayed, from the top left."""

    label: str
    confidence: float
    x_min: int
    y_min: int
    x_max: int
    y_max: int


class Predictions(BaseModel):
    """The objects in one image, best first."""

    success: bool = True
    code: Annotated[int, Field(description="The HTTP status.")] = 200
    predictions: list[Prediction]
    duration: Annotated[int, Field(description="Milliseconds in the service.")]


class Failure(BaseModel):
    """Every answer with a status of 400 or more."""

    success: bool
    error: str
    code: int
    predictions: list[Prediction]


class _Sent(NamedTuple):
    upload: Upload
    threshold: float | None


@router.post(
    "/v1/vision/detection",
    response_model=Predictions,
    responses={"4XX": {"model": Failure}, "5XX": {"model": Failure}},
    openapi_extra={"requestBody": _BODY},
    tags=["other protocols"],
    summary="Detect objects in an image, as DeepStack and CodeProject.AI do",
)
@router.post("/v1/vision/custom/{name}", include_in_schema=False)
async def detection(request: Request) -> Response:
    """For Frigate, Home Assistant and other clients of DeepStack. Other fields, such as `api_key`,
    are ignored. At `/v1/vision/custom/NAME` the model of that name answers.
    """
    refuse_passed_over(
        request.query_params,
        (_THRESHOLD_FIELD, *DetectQuery.model_fields),
        instead=f"the form has {_THRESHOLD_FIELD!r}, and /v1/vision/custom/NAME another model",
    )
    model = model_of(request, request.path_params.get("name"))
    started_s = time.perf_counter()
    stopwatch = Stopwatch()
    sent = await read_request(request, _read, model=model, stopwatch=stopwatch)
    write = partial(_as_json, threshold=sent.threshold, started_s=started_s, stopwatch=stopwatch)
    detector, response = await run_images(
        request, [sent.upload], answer=write, model=model, stopwatch=stopwatch
    )
    tell_times(request, response, model=detector.name, stopwatch=stopwatch)
    return response


async def _read(request: Request, settings: Settings) -> _Sent:
    content_type = request.headers.get("content-type", "")
    if not content_type.strip().lower().startswith("multipart/form-data"):
        raise NoImage(
            f"expected a multipart form with a file in the field {_IMAGE_FIELD!r}, got "
            f"{content_type[:100] or 'no content type'!r}; with curl write "
            f"-F {_IMAGE_FIELD}=@photo.jpg"
        )
    form = await read_form(request, settings)
    files = [value for name, value in form if name == _IMAGE_FIELD]
    if len(files) != 1 or not isinstance(files[0], FormFile):
        raise NoImage(_what_is_there(form))
    if not files[0].data:
        raise NoImage(f"expected a file with content in {_IMAGE_FIELD!r}, got 0 bytes")
    return _Sent(Upload(files[0].name or None, files[0].data), _threshold(form))


def _what_is_there(form: Form) -> str:
    names = ", ".join(repr(name) for name, _ in form)
    return (
        f"expected one file in the field {_IMAGE_FIELD!r}, got the fields "
        f"{names[:200] or 'of an empty form'}; with curl write -F {_IMAGE_FIELD}=@photo.jpg"
    )


def _threshold(form: Form) -> float | None:
    given = [value for name, value in form if name == _THRESHOLD_FIELD]
    if not given:
        return None
    texts = [one if isinstance(one, str) else "a file" for one in given]
    if len(texts) > 1 or not _NUMBER.fullmatch(texts[0]) or not 0 <= float(texts[0]) <= 1:
        shown = ", ".join(repr(text[:100]) for text in texts[:_MOST_SHOWN])
        raise InvalidRequest(f"expected {_THRESHOLD_FIELD!r} once, in 0..1, got {shown}")
    return float(texts[0])


def _as_json(
    detector: Detector,
    found: Sequence[Found],
    *,
    threshold: float | None,
    started_s: float,
    stopwatch: Stopwatch,
) -> Response:
    with stopwatch.stage(Stage.POST):
        (one,) = found
        detections = to_detections(*one, threshold=detector.manifest.lowest_scores(threshold))
    with stopwatch.stage(Stage.ENCODE):
        answer = Predictions(
            predictions=_predictions(detections, detector.manifest.classes),
            duration=round((time.perf_counter() - started_s) * 1e3),
        )
        return Response(answer.model_dump_json(), media_type="application/json")


def _predictions(detections: Detections, classes: Sequence[ClassInfo]) -> list[Prediction]:
    boxes = detections.boxes_xywh_px.astype(float)
    boxes[:, 2:] += boxes[:, :2]
    rows = zip(
        boxes.round().astype(int).tolist(),
        detections.scores.tolist(),
        detections.labels.tolist(),
        strict=True,
    )
    return [
        Prediction(
            label=classes[label].name,
            confidence=round(score, SCORE_DIGITS),
            x_min=box[0],
            y_min=box[1],
            x_max=box[2],
            y_max=box[3],
        )
        for box, score, label in rows
    ]
