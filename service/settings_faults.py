"""What is wrong with the values of settings, in words."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bundle.validation import describe_fault
from service.settings import PREFIX


def describe_settings_faults(error: ValidationError) -> str:
    """What is wrong with which variables, in one line; a secret is not shown."""
    return "; ".join(map(_describe_fault, error.errors(include_url=False)))


def _describe_fault(fault: Mapping[str, Any]) -> str:
    name = "_".join(str(part) for part in fault["loc"])
    return describe_fault(fault, f"{PREFIX}{name.upper()}", is_secret=name == "admin_key")
