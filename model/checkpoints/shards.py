"""Weights in several files with an index, which is how transformers saves large models."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bundle.json_file import read_json

_INDEX_END = ".index.json"
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")  # name of the whole, count, ending


def is_index(path: Path) -> bool:
    """Whether a file is named like an index, such as model.safetensors.index.json."""
    return path.name.endswith(_INDEX_END)


def index_of(path: Path) -> Path | None:
    """The index of a file whose name marks it as one of several parts; else None."""
    match = _PART.fullmatch(path.name)
    if match is None or int(match[2]) == 1:
        return None
    return path.with_name(f"{match[1]}{match[3]}{_INDEX_END}")


def parts_of(index: Path) -> list[Path]:
    """The files that an index names, sorted.

    Raises:
        ValueError: it is not an index, or names a file in another folder.
    """
    return sorted({index.with_name(name) for name in _weight_map(index).values()})


def read_shards(index: Path, read_file: Callable[[Path], Mapping[Any, Any]]) -> Mapping[Any, Any]:
    """The tensors of all parts by name.

    Raises:
        ValueError: a part is missing or lacks a tensor; names it.
    """
    named, parts = _weight_map(index), parts_of(index)
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ValueError(
            f"files that {index} names and that are missing: {len(missing)} of {len(parts)}, "
            f"such as {missing[0]}; download all of them to the same folder"
        )
    content = {key: value for part in parts for key, value in read_file(part).items()}
    if absent := next((name for name in named if name not in content), None):
        raise ValueError(f"{index} says that {named[absent]} holds {absent}, but it does not")
    return content


def _weight_map(index: Path) -> dict[str, str]:
    named = read_json_object(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{index} is not an index of weights: it has no weight_map")
    for name in named.values():
        if not isinstance(name, str) or Path(name).name != name or name == index.name:
            raise ValueError(f"{index} names {name!r}, expected a file beside it")
    return named


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError for anything else."""
    try:
        content = read_json(path.read_bytes(), path)
    except ValueError as error:
        raise ValueError(f"beside the weights, {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"beside the weights, {path}: expected a JSON object, got {str(content)[:40]!r}"
        )
    return content
