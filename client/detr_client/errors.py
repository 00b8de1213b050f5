"""What can go wrong with a request."""

from collections.abc import Callable
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


class DetrError(Exception):
    """The service answered with an error.

    Attributes:
        message: what was expected, what arrived and what to do.
        status: the HTTP status; None without an answer.
        code: a stable name, such as "invalid_image"; None if the answer was not the service's.
        request_id: identifies the request in the service's log.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id

    @classmethod
    def from_response(cls, response: httpx.Response) -> "DetrError":
        """The error in an answer, which may come from a proxy instead of the service."""
        request_id = response.headers.get("X-Request-Id")
        try:
            error = response.json()["error"]
            message, code = str(error["message"]), str(error["code"])
        except (ValueError, KeyError, TypeError):
            message, code = f"status {response.status_code}: {response.text[:200]}", None
        return cls(message, status=response.status_code, code=code, request_id=request_id)


def read_answer(response: httpx.Response, read: Callable[[Any], T]) -> T:
    """What is in the JSON of an answer.

    Raises:
        DetrError: it is not the service's, but perhaps a page of a proxy.
    """
    try:
        return read(response.json())
    except (ValueError, KeyError, TypeError) as error:
        message = f"expected an answer of the service, got {response.text[:200]!r}"
        raise DetrError(message, status=response.status_code) from error


class Unreachable(DetrError):
    """There was no answer: a wrong address, no connection, or one that broke or took too long."""
