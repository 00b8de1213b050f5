"""Parts of the OpenAPI description that FastAPI cannot derive: bodies, examples, errors."""

from collections.abc import Sequence
from typing import Any

from service.errors import (
    ClientGone,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    ReloadRefused,
    ServiceError,
    error_kinds,
)
from service.schemas import FILE_FIELDS, ID_FIELD, ErrorResponse

BINARY = {"type": "string", "format": "binary"}
BASE64 = {"type": "string", "format": "byte"}
DETECT_BODY = {
    "required": True,
    "description": "A form with one or more JPEG, PNG or WebP files, JSON with their base64 text, "
    "or one raw image.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FILE_FIELDS[0]],
                "additionalProperties": False,
                "properties": {
                    FILE_FIELDS[0]: {
                        "type": "array",
                        "items": BINARY,
                        "minItems": 1,
                        "description": f"The images; {FILE_FIELDS[1]!r} and {FILE_FIELDS[2]!r} "
                        "are accepted as well.",
                    },
                    ID_FIELD: {
                        "type": "string",
                        "pattern": r"^-?\d+(,-?\d+)*$",
                        "description": "Their ids in the answer, separated by commas; by default "
                        "their index.",
                    },
                },
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": [FILE_FIELDS[0]],
                "additionalProperties": False,
                "properties": {
                    FILE_FIELDS[0]: {
                        "anyOf": [{"type": "array", "items": BASE64, "minItems": 1}, BASE64],
                        "description": "The files' contents as base64 text; URLs are not fetched.",
                    },
                    ID_FIELD: {
                        "anyOf": [
                            {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                            {"type": "integer"},
                        ],
                        "description": "Their ids in the answer; by default their index.",
                    },
                },
            },
        },
        "image/*": {"schema": BINARY},
        "application/octet-stream": {"schema": BINARY},
    },
}
FOUND = {  # in a sample of the demo
    "bbox": [48.568, 57.746, 31.858, 34.881],
    "category_id": 4,
    "category_name": "three",
    "score": 0.922654,
}
ANSWERS: dict[str, dict[str, Any]] = {
    "detections": {
        "summary": "format=detections, the default",
        "value": {
            "results": [
                {
                    "image_id": 0,
                    "file_name": "2.png",
                    "width": 128,
                    "height": 128,
                    "detections": [FOUND],
                }
            ],
            "model": {"name": "demo", "variant": "two_stage", "version": "628aef529863"},
        },
    },
    "coco": {
        "summary": "format=coco",
        "value": [{"image_id": 0, **{key: FOUND[key] for key in ("category_id", "bbox", "score")}}],
    },
}
# Errors of other paths or methods, and one that no client sees because it has gone.
_ELSEWHERE = (NotFound, MethodNotAllowed, Forbidden, ReloadRefused, ClientGone)


def error_responses() -> dict[int | str, dict[str, Any]]:
    """Every error that a request may get, by status: its codes and what they mean."""
    by_status: dict[int | str, list[type[ServiceError]]] = {}
    for kind in sorted(error_kinds(), key=lambda kind: (kind.status, kind.code)):
        if kind not in _ELSEWHERE:
            by_status.setdefault(kind.status, []).append(kind)
    return {status: _response(kinds) for status, kinds in by_status.items()}


def _response(kinds: Sequence[type[ServiceError]]) -> dict[str, Any]:
    # Without docstrings (PYTHONOPTIMIZE=2), a code stands for itself.
    summaries = {kind.code: (kind.__doc__ or kind.code).splitlines()[0] for kind in kinds}
    return {
        "model": ErrorResponse,
        "description": "\n\n".join(f"`{code}`: {text}" for code, text in summaries.items()),
        "content": {
            "application/json": {
                "examples": {
                    code: {"value": {"error": {"code": code, "message": text}}}
                    for code, text in summaries.items()
                }
            }
        },
    }
