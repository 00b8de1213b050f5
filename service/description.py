"""What the OpenAPI description says of bodies and errors, where FastAPI cannot tell by itself."""

from typing import Any

from service.schemas import FILE_FIELDS, ID_FIELD, ErrorResponse

BINARY = {"type": "string", "format": "binary"}
DETECT_BODY = {
    "required": True,
    "description": "A form with one or more JPEG, PNG or WebP files, JSON with their base64 text, "
    "or one raw image.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FILE_FIELDS[0]],
                "properties": {
                    FILE_FIELDS[0]: {
                        "type": "array",
                        "items": BINARY,
                        "description": f"The images; {FILE_FIELDS[1]!r} and {FILE_FIELDS[2]!r} "
                        "are taken as well.",
                    },
                    ID_FIELD: {
                        "type": "string",
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
                        "type": "array",
                        "items": {"type": "string", "format": "byte"},
                        "minItems": 1,
                        "description": "The files' contents as base64 text; URLs are not fetched.",
                    },
                    ID_FIELD: {
                        "type": "array",
                        "items": {"type": "integer"},
                        "description": "Their ids in the answer; by default their index.",
                    },
                },
            },
        },
        "image/*": {"schema": BINARY},
        "application/octet-stream": {"schema": BINARY},
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request is at fault; `code` tells how."},
    "5XX": {"model": ErrorResponse, "description": "The service could not answer now."},
}
