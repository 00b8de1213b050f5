"""Says in one line what pydantic found wrong with data from a file or the environment."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

_MOST_FAULTS = 3  # a manifest of another program has dozens, which say no more
_LONGEST_VALUE = 60  # characters


def describe_faults(error: ValidationError, *, prefix: str = "") -> str:
    """The first faults as `prefix.field: what is wrong, got value`, with "; " between them."""
    faults = error.errors(include_url=False)
    described = [
        describe_fault(fault, prefix + ".".join(str(part) for part in fault["loc"]))
        for fault in faults[:_MOST_FAULTS]
    ]
    if len(faults) > _MOST_FAULTS:
        described.append(f"and {len(faults) - _MOST_FAULTS} more")
    return "; ".join(described)


def describe_fault(fault: Mapping[str, Any], field: str, *, is_secret: bool = False) -> str:
    """One fault of a field, with the value unless it is secret, missing or already in the text."""
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:  # of several fields
        return message
    found = fault["input"]
    is_shown = fault["type"] not in ("missing", "value_error") and not isinstance(found, dict)
    got = f", got {repr(found)[:_LONGEST_VALUE]}" if is_shown and not is_secret else ""
    return f"{field}: {message}{got}"
