"""Configurations with some settings changed: by FIELD=VALUE, or in a TOML file.

The names, types and allowed values are those of the dataclasses in `model.config`.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bundle.validation import describe_faults
from model.config import TrainConfig
from model.configs import CONFIGS, get_config

Given = str | list[str]  # a value as it was written
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_FINITE = ConfigDict(allow_inf_nan=False)
_AUTO = {("batch_size", "auto"): ("fit_batch", "true")}  # a value that is another setting's
_NOTHING = ("none", "None", "null")
_LARGEST = 2**32 - 1
_BASE = "base"  # of a TOML file: the configuration that it changes
Part = TypeVar("Part")


def load_config(name: str, assignments: Iterable[str] = ()) -> tuple[TrainConfig, list[str]]:
    """A configuration by name or from a TOML file, with settings changed.

    Args:
        name: of a configuration, or of a file NAME.toml: fields of `TrainConfig`, those of its
            parts in tables, and `base`, the configuration that they change.
        assignments: each is one or more "FIELD=VALUE", such as "epochs=30 model.num_queries=100".

    Returns:
        The configuration, and what was changed, in lines like "epochs 50 -> 30".

    Raises:
        ValueError: an unknown name (the nearest ones are given) or a value that is not allowed.
    """
    given = dict(_split(" ".join(assignments)))
    if not name.endswith(".toml"):
        start = get_config(name)
        changed = change_settings(start, given)
    else:
        start, in_file = _read_toml(Path(name))
        try:
            changed = change_settings(start, {"name": Path(name).stem} | in_file)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        changed = change_settings(changed, given)
    return changed, list(_differences(_values(start), _values(changed)))


def change_settings(config: TrainConfig, given: Mapping[str, Given]) -> TrainConfig:
    """The configuration with the given values, by dotted name, in place of its own."""
    if "model.num_classes" in given:
        raise ValueError("model.num_classes: the classes of the data set decide it, leave it out")
    nested: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, str):
            name, value = _AUTO.get((name, value), (name, value))
        *parts, last = name.split(".")
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"{part} is set both as a whole and in part, by {name}")
        place[last] = value
    return _change_part(config, nested, prefix="")


def _split(text: str) -> Iterator[tuple[str, str]]:
    """ "a=1 b=2, 3" as ("a", "1"), ("b", "2, 3")."""
    for assignment in re.split(r"\s+(?=[\w.]+=)", text.strip()) if text.strip() else ():
        name, sign, value = assignment.partition("=")
        if not sign:
            raise ValueError(f"expected SET='FIELD=VALUE' (--set), got {assignment!r}")
        yield name, value.strip()


def _read_toml(path: Path) -> tuple[TrainConfig, dict[str, Given]]:
    """The configuration that a file names as its base, and the values to change."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"there is no configuration file {path}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    base = content.pop(_BASE, None)
    if not isinstance(base, str) or base not in CONFIGS:
        found = "is missing" if base is None else f"is {base!r}"
        raise ValueError(
            f"{path}: {_BASE}, the configuration that it changes, {found}; write for example "
            f'{_BASE} = "small", or another of: {", ".join(CONFIGS)}'
        )
    return get_config(base), dict(_flatten(content))


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Given]]:
    """The values of nested tables by dotted name, as text."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", [*map(str, value)] if isinstance(value, list) else str(value)


def _change_part(part: Part, given: Mapping[str, Any], *, prefix: str) -> Part:
    """A dataclass or pydantic model with new values of its fields, checked together."""
    types = _field_types(type(part))
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in types or (isinstance(value, dict) and _part_type(types[name]) is None):
            raise ValueError(_unknown(_written(prefix + name, value)))
        if isinstance(value, dict):
            before = getattr(part, name)
            before = _part_type(types[name])() if before is None else before
            values[name] = _change_part(before, value, prefix=f"{prefix}{name}.")
        else:
            values[name] = _parse(value, types[name], name=prefix + name)
    if not isinstance(part, BaseModel):
        return replace(part, **values)  # type: ignore[type-var]
    try:
        return type(part).model_validate(part.model_dump() | values)
    except ValidationError as error:
        raise ValueError(describe_faults(error, prefix=prefix)) from None


def _written(name: str, value: Any) -> str:
    """The full name of the first setting in a nested value."""
    while isinstance(value, dict):
        key, value = next(iter(value.items()))
        name = f"{name}.{key}"
    return name


def _parse(given: Given, kind: Any, *, name: str) -> Any:
    """A written value as a field's type."""
    options = _options(kind)
    if NoneType in options and given in _NOTHING:
        return None
    value: Any = given
    if any(get_origin(option) is tuple for option in options) and isinstance(given, str):
        items = [] if given in _NOTHING else given.strip("()[]").split(",")
        value = [item.strip() for item in items if item.strip()]
    if _part_type(kind) is None:
        try:
            parsed = TypeAdapter(kind, config=_FINITE).validate_python(value)
        except ValidationError:
            pass
        else:
            _require_possible(parsed, name)
            return parsed
    others = "".join(f" or {word}" for field, word in _AUTO if field == name)
    raise ValueError(f"{name}: expected {_expected(kind, name)}{others}, got {given!r}")


def _require_possible(value: Any, name: str) -> None:
    """Refuse whole numbers that no size or count of a run can be; torch fails at them."""
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, int) and abs(item) > _LARGEST:
            raise ValueError(f"{name}: expected a whole number below 2^32, got {item}")


def _expected(kind: Any, name: str) -> str:
    """What a field takes, in words."""
    if (part := _part_type(kind)) is not None:
        return f"its settings one by one, such as {name}.{next(iter(_field_types(part)))}=VALUE"
    words = []
    for option in _options(kind):
        if get_origin(option) is Literal:
            words += [str(value) for value in get_args(option)]
        elif get_origin(option) is tuple:
            item, *others = get_args(option)
            count = 4 if Ellipsis in others else len(others) + 1
            number = "" if Ellipsis in others else f"{count} of them, "
            example = ",".join(str(n + 1) for n in range(count))
            words.append(f"{_expected(item, name)} or more with commas, {number}like {example}")
        elif isinstance(option, type) and issubclass(option, Enum):
            words += [str(member.value) for member in option]
        else:
            words.append("none" if option is NoneType else _WORDS[option])
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _unknown(name: str) -> str:
    """A message with the nearest names, or else with those of the same group."""
    names = list(_names(TrainConfig))
    group, _, last = name.rpartition(".")
    by_last = {known.rpartition(".")[2]: known for known in reversed(names)}
    near = [by_last[last]] if last in by_last else get_close_matches(name, names)
    near = near or [by_last[end] for end in get_close_matches(last, by_last)]
    if not near:
        in_group = [known for known in names if group and known.startswith(f"{group}.")]
        near = in_group or list(_field_types(TrainConfig))
    return f"unknown setting {name!r}; did you mean one of: {', '.join(near)}"


def _names(kind: type, prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting."""
    for name, field_type in _field_types(kind).items():
        if (part := _part_type(field_type)) is None:
            yield prefix + name
        else:
            yield from _names(part, f"{prefix}{name}.")


def _field_types(kind: type) -> dict[str, Any]:
    """The fields of a dataclass or pydantic model, with their types."""
    if issubclass(kind, BaseModel):
        return {name: info.annotation for name, info in kind.model_fields.items()}
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}  # type: ignore[arg-type]


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _part_type(kind: Any) -> Any:
    """The dataclass or pydantic model that a field holds, or None for a plain value."""
    for option in _options(kind):
        if is_dataclass(option) or (isinstance(option, type) and issubclass(option, BaseModel)):
            return option
    return None


def _values(config: TrainConfig) -> dict[str, Any]:
    """All settings as they are written."""
    values: dict[str, Any] = TypeAdapter(TrainConfig).dump_python(config, mode="json")
    if values.pop("fit_batch"):
        values["batch_size"] = "auto"
    return values


def _differences(before: Any, after: Any, name: str = "") -> Iterator[str]:
    """A line like "epochs 50 -> 30" for each difference between nested values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from _differences(value, after[key], f"{name}.{key}" if name else key)
    elif before != after:
        yield f"{name} {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"({', '.join(f'{key} {_shown(item)}' for key, item in value.items())})"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
