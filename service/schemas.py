"""The public API: what a request may say and what an answer looks like."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError, to_json
from typing_extensions import TypedDict  # that of typing is too plain for pydantic before 3.12

from bundle.manifest import Batches, ClassInfo, Manifest, version_of
from bundle.postprocess import Detections
from bundle.preprocess import Preprocess
from bundle.thresholds import Thresholds
from bundle.tiles import MIN_TILE_PX

FILE_FIELDS = ("images", "image", "file")  # names for images in a form and a JSON body
ID_FIELD = "image_ids"
DEFAULT_NUM_DETECTIONS = 100  # as COCO's AP counts
BBOX_DIGITS = 3  # a thousandth of a pixel: far below what COCO AP can see
SCORE_DIGITS = 6


class OutputFormat(StrEnum):
    """The shape of the JSON answer."""

    DETECTIONS = "detections"
    COCO = "coco"


class DetectQuery(BaseModel):
    """Query parameters of POST /detect."""

    model_config = ConfigDict(extra="forbid")

    threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Lowest score of the detections to return. By default each class has its "
            "best threshold: see `thresholds` in GET /model.",
        ),
    ] = None
    num_detections: Annotated[
        int | None,
        Field(
            ge=1,
            description="Most detections per image, up to the model's `num_detections` (see GET "
            f"/model). The default is {DEFAULT_NUM_DETECTIONS}, or the model's if that is lower.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        Field(
            ge=1,
            json_schema_extra={"deprecated": True},
            description="An older name for `num_detections`; may exceed the model's.",
        ),
    ] = None
    classes: Annotated[
        list[str],
        Field(description="Only these classes: dataset ids or names (see GET /model); repeatable."),
    ] = []
    nms_iou: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Of boxes of one class that overlap by a larger IoU, return only the best. "
            "By default, return all.",
        ),
    ] = None
    model: Annotated[
        str | None,
        Field(description="The name of a served model (see GET /model); by default the first."),
    ] = None
    tile: Annotated[
        int | None,
        Field(
            ge=MIN_TILE_PX,
            description="Cut larger images into tiles with this side in pixels, to find small "
            "objects; each tile counts as an image.",
        ),
    ] = None
    format: Annotated[
        OutputFormat,
        Field(description="`detections`, or `coco`: the flat list that COCO evaluators load."),
    ] = OutputFormat.DETECTIONS

    @field_validator("threshold", "num_detections", "top_k", "nms_iou", "tile", mode="before")
    @classmethod
    def _check_digits(cls, value: Any) -> Any:
        """Refuse 1_0, which pydantic takes for 10."""
        if isinstance(value, str) and "_" in value:
            raise PydanticCustomError("number", "Input should be a number without underscores")
        return value

    def most_detections(self, manifest: Manifest) -> int | None:
        """Most detections for one image; None for no limit. Tiles add up to more than the model's.

        Raises:
            ValueError: more are asked for than the model has.
        """
        if self.tile is not None:
            return self.num_detections or self.top_k
        limit = manifest.num_detections
        if self.num_detections is not None and self.num_detections > limit:
            raise ValueError(
                f"num_detections: expected at most {limit}, which is what {manifest.name!r} finds "
                f"in an image, got {self.num_detections}"
            )
        return self.num_detections or self.top_k or DEFAULT_NUM_DETECTIONS


class Detection(TypedDict):
    """One object."""

    bbox: Annotated[
        list[float],
        Field(
            min_length=4,
            max_length=4,
            description="[x, y, width, height] in pixels of the image as displayed (EXIF "
            "orientation applied), origin at the top left.",
            examples=[(48.568, 57.746, 31.858, 34.881)],
        ),
    ]
    category_id: int
    category_name: str
    score: float


class ImageResult(TypedDict):
    """The detections of one image, best first; width and height of the image as displayed."""

    image_id: Annotated[
        int, Field(description="Its index in the request, or its value in `image_ids`.")
    ]
    file_name: str | None
    width: int
    height: int
    detections: list[Detection]


def image_result(
    detections: Detections,
    *,
    image_id: int,
    file_name: str | None,
    size: tuple[int, int],
    classes: Sequence[ClassInfo],
) -> ImageResult:
    """Name the labels of one image's detections; `size` is (height, width) as displayed."""
    boxes = np.round(detections.boxes_xywh_px.astype(np.float64), BBOX_DIGITS).tolist()
    scores = np.round(detections.scores.astype(np.float64), SCORE_DIGITS).tolist()
    found: list[Detection] = [
        {
            "bbox": box,
            "category_id": classes[label].id,
            "category_name": classes[label].name,
            "score": score,
        }
        for box, score, label in zip(boxes, scores, detections.labels.tolist(), strict=True)
    ]
    return {
        "image_id": image_id,
        "file_name": file_name,
        "width": size[1],
        "height": size[0],
        "detections": found,
    }


class ModelRef(BaseModel):
    """The model that answered; `version` changes with any byte of its bundle."""

    name: str
    variant: str
    version: str

    @classmethod
    def from_manifest(cls, manifest: Manifest, *, name: str | None = None) -> Self:
        """Name, variant and version of a bundle, which may be served under another name."""
        return cls(
            name=name or manifest.name, variant=manifest.variant, version=version_of(manifest)
        )


class DetectResponse(TypedDict):
    """Answer of POST /detect."""

    results: list[ImageResult]
    model: ModelRef


class CocoResult(TypedDict):
    """One entry of a COCO results file."""

    image_id: int
    category_id: int
    bbox: Annotated[
        list[float],
        Field(min_length=4, max_length=4, examples=[(48.568, 57.746, 31.858, 34.881)]),
    ]
    score: float


def coco_results(results: Iterable[ImageResult]) -> list[CocoResult]:
    """The same detections as a flat list, for `loadRes` of a COCO evaluator."""
    return [
        {
            "image_id": result["image_id"],
            "category_id": detection["category_id"],
            "bbox": detection["bbox"],
            "score": detection["score"],
        }
        for result in results
        for detection in result["detections"]
    ]


def detections_json(
    results: list[ImageResult], *, model: ModelRef, output_format: OutputFormat
) -> bytes:
    """The JSON of an answer; unchecked, as dicts of 100 detections take 80 us, models 207."""
    if output_format is OutputFormat.COCO:
        return to_json(coco_results(results))
    response: DetectResponse = {"results": results, "model": model}
    return to_json(response)


class RunningEngine(BaseModel):
    """What runs the model: see `EngineInfo`."""

    runtime: str
    precision: str
    float_type: str
    graph: str
    threads: int
    streams: int


class ModelInfo(ModelRef):
    """Answer of GET /model; `engine` is null while it loads, `models` names all that are served."""

    models: list[str]
    engine: RunningEngine | None
    classes: list[ClassInfo]
    preprocess: Preprocess
    num_detections: int
    max_batch_size: int
    batches: Batches
    metrics: dict[str, float]
    threshold: Annotated[
        float, Field(description="What a request starts from for classes without their own.")
    ]
    thresholds: Annotated[
        Thresholds | None,
        Field(
            description="The best F1 on the validation images, of all classes and by category id; "
            "null where the model was not evaluated."
        ),
    ]
    provenance: dict[str, Any]
    samples: list[str]


class Health(BaseModel):
    """Answer of GET /healthz and GET /readyz."""

    status: str


class ErrorDetail(BaseModel):
    """What went wrong: a code for programs and a message for people."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail
