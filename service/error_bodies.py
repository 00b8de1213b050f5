"""The JSON of an error, in the protocol that the request's path belongs to."""

import json

from service.errors import ServiceError
from service.schemas import ErrorDetail, ErrorResponse

_DEEPSTACK_PREFIX = "/v1"
_INFERENCE_PREFIX = "/v2"


def error_body(error: ServiceError, path: str = "") -> bytes:
    """The JSON of an error at this path."""
    if path.startswith(_DEEPSTACK_PREFIX):
        failure = {"success": False, "error": error.message, "code": error.status}
        return json.dumps({**failure, "predictions": []}).encode()
    if path.startswith(_INFERENCE_PREFIX):
        return json.dumps({"error": error.message}).encode()
    detail = ErrorDetail(code=error.code, message=error.message)
    return ErrorResponse(error=detail).model_dump_json().encode()
