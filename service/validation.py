"""Reads the query of POST /detect; says what is wrong with parameters, as an error of ours."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import QueryParams

from service.errors import InvalidRequest
from service.json_body import kind_of
from service.names import did_you_mean
from service.schemas import DetectQuery

_DEFAULTS = DetectQuery()
MOST_FAULTS = 5  # a request can have thousands, and each takes time to describe


def invalid_request(faults: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """One error for the faults that pydantic lists."""
    described = [_describe(fault) for fault in faults[:MOST_FAULTS]]
    if len(faults) > MOST_FAULTS:
        described.append(f"and {len(faults) - MOST_FAULTS} more")
    return InvalidRequest("; ".join(described))


def read_query(given: QueryParams) -> DetectQuery:
    """The parameters of POST /detect.

    FastAPI would inspect the types of all fields anew for every request.

    Raises:
        InvalidRequest: an unknown one, or a value that is not allowed.
    """
    if not given:
        return _DEFAULTS
    try:
        return DetectQuery.model_validate(
            {name: given.getlist(name) if name == "classes" else given[name] for name in given}
        )
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise invalid_request(
            [{**fault, "loc": ("query", *fault["loc"])} for fault in faults]
        ) from error


def require_once(query: QueryParams) -> None:
    """Refuse a parameter that is given twice: which of its values was meant, nobody knows.

    Raises:
        InvalidRequest: names it; only `classes` may be repeated.
    """
    if not query:
        return
    for name in DetectQuery.model_fields:
        values = query.getlist(name)
        if len(values) > 1 and name != "classes":
            shown = ", ".join(repr(value[:100]) for value in values[:MOST_FAULTS])
            raise InvalidRequest(f"{name}: expected one value, got {len(values)}: {shown}")


def require_names(query: QueryParams, known: Collection[str]) -> None:
    """Refuse a parameter of an unknown name, which would be passed over.

    Raises:
        InvalidRequest: names it, and those that are known.
    """
    for name in query:
        if name not in known:
            raise InvalidRequest(_unknown(name, known))


def refuse_passed_over(query: QueryParams, names: Iterable[str], *, instead: str) -> None:
    """Refuse parameters that another path has and this one would pass over.

    Raises:
        InvalidRequest: names one; the message ends with `instead`.
    """
    for name in names:
        if name in query:
            raise InvalidRequest(f"{name!r} in the query has no effect here: {instead}")


def _describe(fault: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"][1:])
    if fault["type"] == "extra_forbidden":
        return _unknown(place, DetectQuery.model_fields)
    got = f", got {_shown(fault['input'])}" if "input" in fault else ""
    return f"{place}: {fault['msg']}{got}"


def _unknown(name: str, known: Iterable[str]) -> str:
    return (
        f"unknown parameter {name[:100]!r}: {did_you_mean(name, known)}known are {', '.join(known)}"
    )


def _shown(value: object) -> str:
    """A value, or its kind where writing it out may take seconds, while everyone waits."""
    return kind_of(value) if isinstance(value, list | dict) else repr(str(value)[:100])
