"""Names of models: they stand in URLs, labels of metrics, logs, file names and settings."""

import re

LONGEST_NAME = 64  # characters
NAME_RULE = f"a name has up to {LONGEST_NAME} characters: A-Z, a-z, 0-9, '.', '_' and '-'"
_NAME = re.compile(rf"(?!\.\.?\Z)[A-Za-z0-9._-]{{1,{LONGEST_NAME}}}")
_OTHERS = re.compile(r"[^A-Za-z0-9._-]+")
_UNNAMED = "model"  # if nothing is left of a name


def is_model_name(text: str) -> bool:
    """Whether a model may be served under this name."""
    return _NAME.fullmatch(text) is not None


def to_model_name(text: str) -> str:
    """The nearest name that a model may have: `my-run` for `my run`."""
    if is_model_name(text):
        return text
    return _OTHERS.sub("-", text).strip(".-")[:LONGEST_NAME] or _UNNAMED
