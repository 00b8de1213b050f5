"""Turns FastAPI's validation errors into ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import InvalidRequest
from service.names import did_you_mean
from service.schemas import DetectQuery


def invalid_request(faults: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """One error for all faults that pydantic lists."""
    return InvalidRequest("; ".join(_describe(fault) for fault in faults))


def _describe(fault: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"][1:])
    if fault["type"] == "extra_forbidden":
        known = list(DetectQuery.model_fields)
        return (
            f"unknown parameter {place[:100]!r}: {did_you_mean(place, known)}"
            f"known are {', '.join(known)}"
        )
    got = f", got {str(fault['input'])[:100]!r}" if "input" in fault else ""
    return f"{place}: {fault['msg']}{got}"
