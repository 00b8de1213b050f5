"""The JSON of an error, in the protocol that the request's path belongs to, or its whole answer."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

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


def answer_error(request: Request, error: ServiceError) -> Response:
    """The answer to a request that fails; metrics and log are told of the error."""
    request.app.state.metrics.rejects.labels(error.code).inc()
    request.state.log_fields["code"] = error.code
    body = error_body(error, request.url.path)
    return Response(body, error.status, error.headers, "application/json")


def last_answer(error: ServiceError, headers: Mapping[str, str]) -> bytes:
    """The last answer on a connection, as HTTP, to what never became a request."""
    body = error_body(error)
    all_headers = {
        "Content-Type": "application/json",
        "Content-Length": len(body),
        "Connection": "close",
        **headers,
        **error.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    status_line = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
    return f"{status_line}{lines}\r\n".encode() + body
