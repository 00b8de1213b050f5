"""What decides the result of a run: only a run with the same settings and data continues it."""

import dataclasses
import math
from enum import Enum
from typing import Any

from model.config import TrainConfig

BATCH_FIELDS = ("batch_size", "accumulation_steps")
LENGTHS = ("epochs", "minutes")
# Settings that change the speed, length and files of a run, but no step; threads only round
# sums in another order.
_CHANGE_NO_STEP = (
    "num_workers", "num_threads", "evaluate_every", "patience", "keep_last", "tracker"
)  # fmt: skip
_NOT_COMPARED = (*_CHANGE_NO_STEP, "fit_batch")  # the last is replaced by what was chosen
# Names of data whose hashes are compared, and digests of image files: repaired ones may go on.
_DATA_NOT_COMPARED = ("dataset", "train_annotations", "val_annotations", "train_files", "val_files")


def run_fingerprint(config: TrainConfig, data_summary: dict[str, Any]) -> dict[str, Any]:
    """Plain values that decide what a run computes."""
    values = _plain(dataclasses.asdict(config))
    for name in _CHANGE_NO_STEP:
        del values[name]
    return {"config": values, "data": _plain(data_summary)}


def comparable(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A copy without what may differ between a run and its continuation.

    Settings that did not exist yet when it was saved have their defaults.
    """
    data = {
        key: value for key, value in fingerprint["data"].items() if key not in _DATA_NOT_COMPARED
    }
    config = {k: v for k, v in fingerprint["config"].items() if k not in _NOT_COMPARED}
    defaults = _plain(dataclasses.asdict(TrainConfig(name="")))
    return {"config": _filled(config, defaults), "data": data}


def _filled(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    filled = dict(saved)
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(saved.get(name), dict):
            filled[name] = _filled(saved[name], value)
        elif name not in saved and name not in _NOT_COMPARED:
            filled[name] = value
    return filled


def splits_of_other_images(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """The splits whose image files have changed; none where the saved run did not note them."""
    before, now = saved["data"], current["data"]
    names = {"train": "train_files", "val": "val_files"}
    return [s for s, key in names.items() if before.get(key, now.get(key)) != now.get(key)]


def is_same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two fingerprints differ in nothing but the length of the run."""
    one, other = comparable(one), comparable(other)
    for length in LENGTHS:
        one["config"][length] = other["config"][length] = None
    return not differences(one, other)


def effective_batch(fingerprint: dict[str, Any]) -> int:
    """Images in a step."""
    return math.prod(fingerprint["config"][name] for name in BATCH_FIELDS)


def with_saved_batch(config: TrainConfig, saved: dict[str, Any]) -> TrainConfig:
    """The configuration with the batch size that was chosen when the saved run began."""
    if not config.fit_batch:
        return config
    fields = saved["fingerprint"]["config"]
    chosen = {name: fields[name] for name in BATCH_FIELDS}
    return dataclasses.replace(config, **chosen, fit_batch=False)


def differences(saved: dict[str, Any], current: dict[str, Any], *, prefix: str = "") -> list[str]:
    """A line like "config.epochs: 10 saved, 20 now" for each difference."""
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += differences(before, now, prefix=f"{prefix}{key}.")
        elif before != now:
            lines.append(f"{prefix}{key}: {before!r} saved, {now!r} now")
    return lines


def _plain(value: Any) -> Any:
    """`value` as dicts, lists, str, int, float and None only, which weights_only can read."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "model_dump"):  # pydantic: the preprocessing
        return _plain(value.model_dump())
    return value
