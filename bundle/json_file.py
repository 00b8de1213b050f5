"""Reads a JSON file in any encoding, and says what a file is if it is not JSON."""

import json
from pathlib import Path
from typing import Any

from bundle.regular_file import require_file

_SEEN_BYTES = 262_144  # to tell formats apart, even after the names of a few thousand classes
# First bytes of a file, what it is, and what to do.
_OTHERS = (
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (b"<", "an HTML or XML page; download the file itself"),
)


def read_json(data: bytes, path: Path) -> Any:
    """The content of a file in UTF-8, 16 or 32, with or without a byte order mark.

    Args:
        path: of the file, for messages.

    Raises:
        ValueError: it is not valid JSON; says what it is, if it is recognised.
    """
    beginning = data[:64].lstrip()
    other = next((kind for start, kind in _OTHERS if beginning.startswith(start)), None)
    if other is not None:
        raise ValueError(f"{path}: not valid JSON but {other}")
    if not data.strip():
        raise ValueError(f"{path}: not valid JSON: the file is empty")
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}; save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not valid JSON: its lists are nested too deep") from error
    except json.JSONDecodeError as error:
        hint = "; is it one JSON value per line? Put them into one list" * _is_lines(data)
        raise ValueError(f"{path}: not valid JSON: {error}{hint}") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path}: {str(error).split(';')[0]}") from error


def starts_with(file: Path, first: str, *others: str) -> bool:
    """Whether a file begins with a character of JSON, and has one of any others soon after it."""
    with require_file(file).open("rb") as stream:
        data = stream.read(_SEEN_BYTES)
    text = data.decode(json.detect_encoding(data), errors="ignore").lstrip()
    return text.startswith(first) and (not others or any(other in text for other in others))


def _is_lines(data: bytes) -> bool:
    """Whether the first line alone is a JSON object."""
    try:
        return isinstance(json.loads(data.splitlines()[0]), dict)
    except (ValueError, RecursionError):
        return False
