"""Checkpoints in words, for the command line."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.checkpoints.checkpoint_file import Checkpoint


def describe(checkpoint: Checkpoint, *, with_tensors: bool = False) -> Iterator[str]:
    """The lines about a checkpoint: accuracy, classes, configuration, origin, then tensors."""
    model = checkpoint.config.model
    yield (
        f"{checkpoint.path}: config {checkpoint.config.name}, {model.variant}, "
        f"classes: {model.num_classes}"
    )
    shown = (f"{name} {value:.3f}" for name, value in checkpoint.metrics.items())
    yield ", ".join(shown) or "no AP: it was not evaluated, or on images without boxes"
    if checkpoint.thresholds:
        yield f"best F1 at {checkpoint.thresholds.overall}"
    yield from ("", "classes: output -> id -> name", *_class_lines(checkpoint))
    header = checkpoint.header()
    for part in ("config", "provenance"):
        yield from ("", part, *_value_lines(header[part]))
    yield ""
    if with_tensors:
        for name, tensor in checkpoint.state_dict.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            yield f"{name:60} {dtype:9} {tuple(tensor.shape)}"
    total = sum(tensor.numel() for tensor in checkpoint.state_dict.values())
    hint = "" if with_tensors else "; --tensors lists them"
    yield f"{len(checkpoint.state_dict)} tensors, {total:,} values{hint}"


def describe_conversion(checkpoint: Checkpoint, destination: Path) -> Iterator[str]:
    """The lines about what a published file was converted to: output -> id -> name."""
    made, model = checkpoint.provenance, checkpoint.config.model
    yield f"{destination}: {model.variant}, classes: {model.num_classes}, from {made['layout']}"
    images = checkpoint.config.preprocess
    yield f"images: short side {images.short_side}, long side at most {images.long_side} pixels"
    yield f"classes: {made['classes']}\noutput -> id -> name"
    yield from _class_lines(checkpoint)


def _class_lines(checkpoint: Checkpoint) -> Iterator[str]:
    for output, info in enumerate(checkpoint.classes):
        yield f"{output:>6} -> {info.id} -> {info.name}"


def _value_lines(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested values by dotted name, as SET= takes settings."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _value_lines(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"  {prefix}{name}={','.join(map(str, value))}"
        else:
            yield f"  {prefix}{name}={'none' if value is None else value}"
