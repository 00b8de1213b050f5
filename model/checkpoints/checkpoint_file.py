"""A checkpoint is one safetensors file: tensors, and a header with everything they need."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bundle.atomic import FULL_DISK, write_atomically
from bundle.manifest import ClassInfo
from bundle.thresholds import Thresholds
from bundle.validation import describe_faults
from model.checkpoints.file_kind import (
    name_foreign_kind,
    require_checkpoint,
    require_checkpoint_name,
)
from model.config import TrainConfig
from model.network.deformable_detr import DeformableDetr

FORMAT_VERSION = 1
METADATA_KEY = "detr_serve"  # of the header's string-to-string map; its value is our JSON
# Of `query_content` and `denoising_queries`; every new training learns its own.
_TABLES = ("queries.content.weight", "queries.label_content.weight")
# Settings in which a model may differ from the checkpoint it starts from.
_FREE_FIELDS = ("num_classes", "num_detections", "dropout", "frozen_stages", "train_batch_norm",
                "train_padding", "gradient_checkpointing", "look_forward_twice",
                "one_to_many_queries", "denoising_queries", "query_content")  # fmt: skip


class _Header(BaseModel):
    """The JSON part of the file."""

    format_version: int
    config: TrainConfig
    classes: tuple[ClassInfo, ...]
    provenance: dict[str, Any]
    metrics: dict[str, float]
    thresholds: Thresholds | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with its origin.

    Attributes:
        path: the file it was read from.
        classes: dataset id and name by label.
        provenance: where the weights come from; free-form JSON.
        metrics: measured accuracy, e.g. {"AP": 0.44}.
        state_dict: tensors under the names of `DeformableDetr`, on the CPU.
        thresholds: the scores with the best F1, if it was evaluated.
    """

    path: Path
    config: TrainConfig
    classes: tuple[ClassInfo, ...]
    provenance: dict[str, Any]
    metrics: dict[str, float]
    state_dict: dict[str, Tensor]
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        if len(self.classes) != self.config.model.num_classes:
            raise ValueError(
                f"{self.path}: the model has num_classes={self.config.model.num_classes}, but the "
                f"number of class names is {len(self.classes)}"
            )

    def header(self) -> dict[str, Any]:
        """The part that is written as JSON."""
        return _Header(
            format_version=FORMAT_VERSION,
            config=self.config,
            classes=self.classes,
            provenance=self.provenance,
            metrics=self.metrics,
            thresholds=self.thresholds,
        ).model_dump(mode="json")


def save_checkpoint(
    path: Path | str,
    model: nn.Module,
    *,
    config: TrainConfig,
    classes: Iterable[ClassInfo],
    provenance: Mapping[str, Any],
    metrics: Mapping[str, float],
    thresholds: Thresholds | None = None,
) -> None:
    """Write the model's state atomically.

    Raises:
        ValueError: the name does not end in .safetensors, or classes and config disagree.
        OSError: the disk is full or not writable; an existing file is untouched.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    origin = dict(provenance), dict(metrics)
    write_checkpoint(
        Checkpoint(Path(path), config, tuple(classes), *origin, state, thresholds), path
    )


def write_checkpoint(checkpoint: Checkpoint, path: Path | str) -> None:
    """Write a checkpoint from memory, like `save_checkpoint`."""
    path = Path(path)
    require_checkpoint_name(path)
    write_tensors(
        path, checkpoint.state_dict, metadata={METADATA_KEY: json.dumps(checkpoint.header())}
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str]) -> None:
    """Write tensors of any shape and type as a safetensors file, atomically.

    Raises:
        OSError: says what to do.
    """
    write_whole(path, safetensors.torch.save(_unshared(tensors), metadata))


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous and without shared memory, as safetensors requires."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone() if memory in seen else tensor.contiguous()
        seen.add(memory)
    return unshared


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically; OSError says what to do."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        is_full = error.errno in FULL_DISK
        advice = f"free {len(data) / 1e6:.0f} MB" if is_full else "make its directory writable"
        raise OSError(
            error.errno,
            f"cannot write {path} ({error.strerror}): {advice} or choose another directory; an "
            "existing file of that name is unchanged",
        ) from error


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint, with tensors on the CPU. Nothing in the file is executed.

    Raises:
        ValueError: not a checkpoint of this project and version; says what to do.
    """
    path = Path(path)
    require_checkpoint(path)
    advice = (
        f"python -m model.checkpoint convert {quote(str(path))} NEW.safetensors reads published "
        "weights"
    )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if METADATA_KEY not in metadata:
            raise ValueError(f"{path} is a safetensors file of another project; {advice}")
        header = _parse_header(path, metadata[METADATA_KEY])
        state = safetensors.torch.load_file(path)
    except SafetensorError as error:
        kind = name_foreign_kind(path) or f"not a complete safetensors file ({error}); {advice}"
        raise ValueError(f"{path} is {kind}") from error
    origin = header.provenance, header.metrics
    return Checkpoint(path, header.config, header.classes, *origin, state, header.thresholds)


def _parse_header(path: Path, text: str) -> _Header:
    try:
        given = json.loads(text)
        version = given["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its header is damaged ({error!r}); write it again") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this code reads {FORMAT_VERSION}; "
            "use the release that wrote it, or train or convert again"
        )
    try:
        header = _Header.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"{path}: its header is not valid: {describe_faults(error)}") from error
    if unknown := _unknown_fields(given, header.model_dump(mode="json")):
        raise ValueError(
            f"{path} has settings that this code does not know: {', '.join(unknown)}; "
            "use the release that wrote it"
        )
    return header


def _unknown_fields(given: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    unknown = [key for key in given if key not in known]
    for key, value in known.items():
        if isinstance(value, dict) and isinstance(given.get(key), dict):
            unknown += [f"{key}.{field}" for field in _unknown_fields(given[key], value)]
    return unknown


def build_model(checkpoint: Checkpoint) -> DeformableDetr:
    """The model of a checkpoint in eval mode; ValueError if its tensors do not fit its config."""
    model = DeformableDetr(checkpoint.config.model)
    if fault := first_mismatch(model.state_dict(), checkpoint.state_dict):
        raise ValueError(
            f"{checkpoint.path} does not hold the model that its configuration describes: "
            f"{fault}; train or convert it again"
        )
    model.load_state_dict(checkpoint.state_dict)
    return model.eval()


def first_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor that is missing, misshapen or left over; None if all agree."""
    for name, tensor in expected.items():
        if name not in found:
            return f"tensor {name} {tuple(tensor.shape)} is missing"
        if found[name].shape != tensor.shape:
            return (
                f"tensor {name} has shape {tuple(found[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    return next((f"tensor {name} is left over" for name in found if name not in expected), None)


def _other_tables(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """Recipes' tables that only one of two models has, or that differ in size."""
    names = [name for name in {**ours, **theirs} if name in _TABLES]
    shapes = [[x[name].shape if name in x else None for x in (ours, theirs)] for name in names]
    return [name for name, (mine, other) in zip(names, shapes, strict=True) if mine != other]


def load_for_finetuning(path: Path | str, model: DeformableDetr) -> list[str]:
    """Start a model from a checkpoint, which may have other classes, and say what was loaded.

    If the number of classes differs, class heads keep the model's initial values (prior
    probability 0.01), and so do tables of recipes that the checkpoint was trained without;
    everything else is loaded.

    Returns:
        Sentences for the log.

    Raises:
        ValueError: anything but the class count disagrees; names the first tensor or size.
    """
    checkpoint = load_checkpoint(path)
    theirs, ours = asdict(checkpoint.config.model), asdict(model.config)
    expected = model.state_dict()
    remade = [
        name
        for name, tensor in checkpoint.state_dict.items()
        if name.startswith(("class_heads.", "queries.class_head."))
        and name in expected
        and tensor.shape[1:] == expected[name].shape[1:]
        and len(tensor) != len(expected[name])
    ]
    tables = _other_tables(expected, checkpoint.state_dict)
    kept = {name: x for name, x in checkpoint.state_dict.items() if name not in {*remade, *tables}}
    compared = {name: x for name, x in expected.items() if name not in {*remade, *tables}}
    fault = first_mismatch(compared, kept)
    differing = [f for f in ours if theirs[f] != ours[f] and f not in _FREE_FIELDS]
    # With another number of heads, the same tensors mean something else.
    if fault or theirs["num_heads"] != ours["num_heads"]:
        sizes = ", ".join(f"{f} {theirs[f]} (the config has {ours[f]})" for f in differing)
        raise ValueError(
            f"{path} cannot start this model: {fault or 'the attention heads differ'}. "
            f"The checkpoint was made with {sizes or 'the same sizes'}; choose a config of its kind"
        )
    model.load_state_dict(kept, strict=False)
    report = [f"{path}: {len(kept)} tensors loaded ({checkpoint.config.model.variant})"]
    if started := [name for name in tables if name in expected]:
        report.append(f"start at random, as the checkpoint has none that fit: {', '.join(started)}")
    if remade:
        report.append(
            f"{len(remade)} tensors of the class heads reset for num_classes={ours['num_classes']} "
            f"(the checkpoint has {theirs['num_classes']}): {', '.join(remade)}"
        )
    else:
        names = ", ".join(entry.name for entry in checkpoint.classes[:10])
        report.append(f"class heads kept, trained on {theirs['num_classes']} classes: {names}")
    return report
