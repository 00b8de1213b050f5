"""/v2: the Open Inference Protocol of Triton and KServe, with its binary extension."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from bundle.detect import Found
from bundle.manifest import ClassInfo
from bundle.postprocess import Detections, to_detections
from service.detector import Detector
from service.errors import (
    InvalidImage,
    InvalidRequest,
    NoImage,
    UnknownModel,
)
from service.exchange import is_ready, model_of, read_request, run_images, tell_times
from service.form import too_many_images
from service.json_body import parse_in_turn
from service.metrics import Stage, Stopwatch
from service.names import did_you_mean
from service.openapi import infer_request
from service.schemas import BBOX_DIGITS, SCORE_DIGITS, DetectQuery
from service.served_model import ServedModel
from service.settings import Settings
from service.tensors import (
    HEADER_LENGTH,
    ArrivedTensor,
    InferRequest,
    Tensor,
    WantedOutput,
    read_infer_request,
    write_infer_answer,
)
from service.uploads import Upload, read_body
from service.validation import refuse_passed_over

FILES_INPUT = "image"  # BYTES: JPEG, PNG or WebP files
PIXELS_INPUT = "pixels"  # UINT8: RGB
_UNSUPPORTED = {  # parameters of an output that would give it another form or place
    "classification": "the classes are in 'category_names'",
    "shared_memory_region": "outputs are in the answer",
}
_INPUTS = {FILES_INPUT: ("BYTES", [-1]), PIXELS_INPUT: ("UINT8", [-1, -1, -1, 3])}


class _Failure(BaseModel):
    """Every answer with a status of 400 or more."""

    error: str


router = APIRouter(
    prefix="/v2",
    tags=["other protocols"],
    responses={"4XX": {"model": _Failure}, "5XX": {"model": _Failure}},
)


class TensorInfo(BaseModel):
    """A tensor of the model; -1 in its shape stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """The model as the protocol describes it. A request has one of the inputs, not both."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ServerMetadata(BaseModel):
    """The server as the protocol describes it."""

    name: str
    version: str
    extensions: list[str]


class _Sent(NamedTuple):
    request: InferRequest
    uploads: list[Upload]


@router.get("/health/live", summary="Is the process alive?")
async def live() -> dict[str, bool]:
    """200 as long as the process answers at all."""
    return {"live": True}


@router.get("/health/ready", summary="Are requests welcome?")
async def ready(request: Request, response: Response) -> dict[str, bool]:
    """200 while the service takes requests, else 503."""
    response.status_code = 200 if is_ready(request) else 503
    return {"ready": is_ready(request)}


@router.get("", summary="The server")
async def server(request: Request) -> ServerMetadata:
    """Name, version and extensions."""
    app = request.app
    return ServerMetadata(name=app.title, version=app.version, extensions=["binary_tensor_data"])


@router.get("/models/{name}", summary="The model's tensors")
@router.get("/models/{name}/versions/{version}", include_in_schema=False)
async def metadata(request: Request, name: str, *, version: str | None = None) -> ModelMetadata:
    """The model, under a name that GET /model reports."""
    detector = _named(request, name, version).detector
    num_detections = detector.manifest.num_detections
    return ModelMetadata(
        name=name,
        versions=[detector.model_ref.version],
        platform=detector.engine_info.runtime if detector.engine_info else "",
        inputs=[
            TensorInfo(name=input_name, datatype=datatype, shape=shape)
            for input_name, (datatype, shape) in _INPUTS.items()
        ],
        outputs=[
            TensorInfo(
                name=output_name,
                datatype=tensor.datatype,
                shape=[-1, num_detections, *tensor.array.shape[2:]],
            )
            for output_name, tensor in _outputs([], []).items()
        ],
    )


@router.get("/models/{name}/ready", summary="Does the model take requests?")
@router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
async def model_ready(
    request: Request, response: Response, *, name: str, version: str | None = None
) -> dict[str, Any]:
    """200 while requests are welcome, else 503."""
    _named(request, name, version)
    response.status_code = 200 if is_ready(request) else 503
    return {"name": name, "ready": is_ready(request)}


@router.post(
    "/models/{name}/infer",
    summary="Detect objects in images sent as a tensor",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": infer_request()}},
        }
    },
)
@router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, name: str, *, version: str | None = None) -> Response:
    """Send files as `image` (BYTES; base64 text in JSON) or RGB values as `pixels` (UINT8). Each
    output has one row per image with `num_detections` entries, best first, with no threshold.
    """
    refuse_passed_over(
        request.query_params,
        DetectQuery.model_fields,
        instead="the path names the model, and no threshold is applied",
    )
    model = _named(request, name, version)
    stopwatch = Stopwatch()
    sent = await read_request(request, _read, model=model, stopwatch=stopwatch)
    wanted = _wanted(sent.request)
    write = partial(_response, request=sent.request, wanted=wanted, stopwatch=stopwatch)
    detector, response = await run_images(
        request, sent.uploads, answer=write, model=model, stopwatch=stopwatch
    )
    tell_times(request, response, model=detector.name, stopwatch=stopwatch)
    return response


def _named(request: Request, name: str, version: str | None) -> ServedModel:
    model = model_of(request, name)
    served = model.detector.model_ref
    if version not in (None, served.version):
        raise UnknownModel(
            f"no model {name!r} in version {version[:100]!r}: version {served.version!r} is served"
        )
    return model


# --- from tensors to images


async def _read(request: Request, settings: Settings) -> _Sent:
    body = await read_body(request)
    header_length = request.headers.get(HEADER_LENGTH)
    return await parse_in_turn(partial(_parse, body, header_length, settings))


def _parse(body: bytes, header_length: str | None, settings: Settings) -> _Sent:
    request, tensors = read_infer_request(body, header_length)
    names = [tensor.head.name for tensor in tensors]
    if len(names) != 1 or names[0] not in _INPUTS:
        hint = did_you_mean(names[0], _INPUTS) if len(names) == 1 else ""
        raise InvalidRequest(
            f"expected one input, {FILES_INPUT!r} or {PIXELS_INPUT!r}, got "
            f"{', '.join(map(repr, names))[:200] or 'none'}: {hint}"
            "GET /v2/models/NAME describes them"
        )
    (tensor,) = tensors
    datatype, _ = _INPUTS[tensor.head.name]
    if tensor.head.datatype != datatype:
        raise InvalidRequest(
            f"input {tensor.head.name!r}: expected the datatype {datatype}, got "
            f"{tensor.head.datatype[:100]!r}"
        )
    is_files = tensor.head.name == FILES_INPUT
    uploads = _from_files(tensor) if is_files else _from_pixels(tensor, settings)
    if not uploads:
        raise NoImage(f"input {tensor.head.name!r}: expected an image, got an empty tensor")
    if len(uploads) > settings.max_images:
        raise too_many_images(str(len(uploads)), settings)
    return _Sent(request, uploads)


def _from_files(tensor: ArrivedTensor) -> list[Upload]:
    shape = tensor.head.shape
    if shape[1:] not in ([], [1]) or not shape:
        raise InvalidRequest(
            f"input {tensor.head.name!r}: expected the shape [images] or [images, 1], got {shape}"
        )
    return [Upload(None, data) for data in tensor.files()]


def _from_pixels(tensor: ArrivedTensor, settings: Settings) -> list[Upload]:
    shape = tensor.head.shape
    if len(shape) not in (3, 4) or shape[-1] != 3 or min(shape[-3:]) < 1:
        raise InvalidRequest(
            f"input {tensor.head.name!r}: expected the shape [height, width, 3] or [images, "
            f"height, width, 3], in RGB, got {shape}"
        )
    if shape[-3] * shape[-2] > settings.max_pixels:
        raise InvalidImage(
            f"input {tensor.head.name!r}: expected at most {settings.max_pixels:,} pixels an "
            f"image, got {shape[-3]} x {shape[-2]}"
        )
    pixels = tensor.pixels()
    return [Upload(None, image) for image in (pixels if len(shape) == 4 else pixels[None])]


# --- from detections to tensors


def _wanted(request: InferRequest) -> list[WantedOutput]:
    known = list(_outputs([], []))
    for output in request.outputs:
        if output.name not in known:
            raise InvalidRequest(
                f"unknown output {output.name[:100]!r}: {did_you_mean(output.name, known)}"
                f"known are {', '.join(known)}"
            )
        for name, instead in _UNSUPPORTED.items():
            if output.parameters.get(name):
                raise InvalidRequest(
                    f"output {output.name!r}: the parameter {name!r} is not supported; {instead}"
                )
    return request.outputs or [WantedOutput(name=name) for name in known]


def _outputs(detections: Sequence[Detections], classes: Sequence[ClassInfo]) -> dict[str, Tensor]:
    """Every output by its name, (B, N) or (B, N, 4) for B images; B may be 0."""
    ids = np.array([info.id for info in classes], np.int64)
    names = np.array([info.name for info in classes], object)
    shape = (len(detections), -1 if detections else 0)
    labels = _stack([one.labels for one in detections], np.int64).reshape(shape)
    scores = _stack([one.scores for one in detections], np.float32).reshape(shape)
    boxes = _stack([one.boxes_xywh_px for one in detections], np.float32).reshape(*shape, 4)
    return {
        "scores": Tensor("FP32", scores.round(SCORE_DIGITS)),
        "category_ids": Tensor("INT64", ids[labels]),
        "category_names": Tensor("BYTES", names[labels]),
        "boxes": Tensor("FP32", boxes.round(BBOX_DIGITS)),
    }


def _stack(rows: Sequence[np.ndarray[Any, Any]], dtype: type) -> np.ndarray[Any, Any]:
    return np.concatenate(rows, dtype=dtype) if rows else np.zeros(0, dtype)


def _response(
    detector: Detector,
    found: Sequence[Found],
    *,
    request: InferRequest,
    wanted: Sequence[WantedOutput],
    stopwatch: Stopwatch,
) -> Response:
    with stopwatch.stage(Stage.POST):
        detections = [to_detections(*one) for one in found]
        outputs = _outputs(detections, detector.manifest.classes)
    with stopwatch.stage(Stage.ENCODE):
        tensors = [(one.name, outputs[one.name], request.is_binary(one)) for one in wanted]
        served = detector.model_ref
        answer = {"model_name": served.name, "model_version": served.version}
        if request.id is not None:
            answer["id"] = request.id
        body, num_json = write_infer_answer(answer, tensors)
        if num_json is None:
            return Response(body, media_type="application/json")
        headers = {HEADER_LENGTH: str(num_json)}
        return Response(body, headers=headers, media_type="application/octet-stream")
