"""What can go wrong while serving, as a client sees it: an HTTP status and a stable code.

ServiceError
├── InvalidRequest         422  a parameter or field is wrong
│   ├── NoImage            422  the request carries no image
│   └── UnknownClass       422  a class that the model does not know
├── InvalidImage           422  cannot be decoded, or has too many pixels
├── MalformedBody          400  not the form or JSON it says it is
├── MalformedRequest       400  not valid HTTP
├── HeadersTooLarge        431  path and headers are over the limit
├── RequestTimeout         408  headers or body arrive too slowly
├── TooManyConnections     503  the limit of connections is reached
├── NotFound               404  nothing at that path
│   └── UnknownModel       404  a model that is not served here
├── Unauthorized           401  no API key, or an unknown one
├── Forbidden              403  the administrator's key is missing or wrong
├── MethodNotAllowed       405  the path does not support that method
├── NotAcceptable          406  this request has no answer of the type that the client accepts
├── PayloadTooLarge        413  the body is over the limit
│   ├── TooManyImages      413  more images than one request may carry
│   └── ImageTooLarge      413  an image that needs more memory than decoding may use
├── UnsupportedMediaType   415  not a JPEG, PNG or WebP
├── ReloadRefused          409  the new bundle cannot be served
├── ClientGone             499  nobody is left to answer
├── NotReady               503  loading, draining, or the engine is broken
├── Overloaded             503  the queue is full, or the deadline could not be met
├── DeadlineExceeded       504  waited too long in the queue
└── EngineFailure          500  the runtime failed, or its output was not finite
"""

import math
from typing import ClassVar

from bundle.terminal import encodable


class ServiceError(Exception):
    """An answer other than a result; the message says what to do about it."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = encodable(message)  # it may name a path
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, in whole seconds, where waiting helps."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


class InvalidRequest(ServiceError):
    """A query parameter or a form field is wrong."""

    status = 422
    code = "invalid_request"


class NoImage(InvalidRequest):
    """The request carries no image, or carries it in a field of another name."""

    code = "no_image"


class UnknownClass(InvalidRequest):
    """The `classes` parameter names a class that the model does not have."""

    code = "unknown_class"


class InvalidImage(ServiceError):
    """The image cannot be decoded, or has more pixels than the limit."""

    status = 422
    code = "invalid_image"


class MalformedRequest(ServiceError):
    """What was sent is not valid HTTP."""

    status = 400
    code = "malformed_request"


class HeadersTooLarge(ServiceError):
    """Path and headers, or the trailers of a body, are larger than the limit."""

    status = 431
    code = "headers_too_large"


class RequestTimeout(ServiceError):
    """The client sends its request too slowly."""

    status = 408
    code = "request_timeout"

    @property
    def headers(self) -> dict[str, str]:
        """Close the connection, since the rest of the request is not read."""
        return {**super().headers, "Connection": "close"}


class TooManyConnections(ServiceError):
    """The limit of connections is reached, and each of them has a request."""

    status = 503
    code = "too_many_connections"


class MalformedBody(ServiceError):
    """The body is not the form or the JSON that its content type promises."""

    status = 400
    code = "malformed_body"


class NotFound(ServiceError):
    """Nothing is at this path."""

    status = 404
    code = "not_found"


class UnknownModel(NotFound):
    """No model of that name, or of that version, is served here."""

    code = "unknown_model"


class Unauthorized(ServiceError):
    """The request carries no valid API key."""

    status = 401
    code = "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        """Tell the client how to send a key."""
        return {**super().headers, "WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    """The request lacks the administrator's key, or comes from a web page that may not ask."""

    status = 403
    code = "forbidden"


class ReloadRefused(ServiceError):
    """The new bundle cannot be served; the old one keeps serving."""

    status = 409
    code = "reload_refused"


class MethodNotAllowed(ServiceError):
    """The path exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


class NotAcceptable(ServiceError):
    """This request cannot be answered in any type that the client accepts."""

    status = 406
    code = "not_acceptable"


class PayloadTooLarge(ServiceError):
    """The body is larger than the limit."""

    status = 413
    code = "payload_too_large"


class TooManyImages(PayloadTooLarge):
    """More images in one request than the limit."""

    code = "too_many_images"


class ImageTooLarge(PayloadTooLarge):
    """An image needs more memory than decoding may use."""

    code = "image_too_large"


class UnsupportedMediaType(ServiceError):
    """The file is not an image of an accepted format, by its content."""

    status = 415
    code = "unsupported_media_type"


class ClientGone(ServiceError):
    """The client closed the connection before it was answered; seen only in logs and metrics."""

    status = 499
    code = "client_gone"


class NotReady(ServiceError):
    """The service is loading its model, draining before it stops, or has a broken engine."""

    status = 503
    code = "not_ready"


class Overloaded(ServiceError):
    """The queue is full, or the predicted wait is longer than the request's deadline."""

    status = 503
    code = "overloaded"


class DeadlineExceeded(ServiceError):
    """The request's deadline passed while it waited; the engine never saw it."""

    status = 504
    code = "deadline_exceeded"


class EngineFailure(ServiceError):
    """The runtime raised an error, or its output was not finite."""

    status = 500
    code = "engine_failure"


def error_kinds(kind: type[ServiceError] = ServiceError) -> set[type[ServiceError]]:
    """A kind of error and all below it."""
    return {kind}.union(*(error_kinds(below) for below in kind.__subclasses__()))
