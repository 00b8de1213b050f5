"""The manifest of a bundle: everything the service must know about the graph it runs.

A bundle is a directory of files that deploy one model. Its `manifest.json` names them with
their SHA-256, so that what is served is what was verified.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundle.atomic import write_atomically
from bundle.json_file import read_json
from bundle.layout import (
    CACHE_FOLDER,
    IMAGES,
    KNOWN_ANSWERS_FILE,
    MANIFEST_FILE,
    OUTPUTS,
    PADDING_MASK,
)
from bundle.model_name import to_model_name
from bundle.preprocess import Preprocess
from bundle.regular_file import require_file
from bundle.tensorrt_plan import TensorRTPlan
from bundle.terminal import one_line
from bundle.thresholds import DEFAULT_THRESHOLD, Float32Array, Thresholds
from bundle.validation import describe_faults

FORMAT_VERSION: Final = 3
REMEDY = "rebuild the bundle with `make export`"

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Batches = Literal["any", "equal_shapes"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One input or output of the graph; a dimension is a size, or the name of a free one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


_IMAGE = ("batch", "height", "width")
INPUT_SPECS: Final = (
    TensorSpec(name=IMAGES, dtype="uint8", shape=(*_IMAGE, 3)),
    TensorSpec(name=PADDING_MASK, dtype="bool", shape=_IMAGE),
)


def output_specs(num_detections: int) -> tuple[TensorSpec, ...]:
    """The outputs of a graph with this many detections per image."""
    shape = ("batch", num_detections)
    scores, labels, boxes = OUTPUTS
    return (
        TensorSpec(name=scores, dtype="float32", shape=shape),
        TensorSpec(name=labels, dtype="int64", shape=shape),
        TensorSpec(name=boxes, dtype="float32", shape=(*shape, 4)),
    )


class ClassInfo(_Frozen):
    """A class as the data set names it; its position in the list is the label."""

    id: int
    name: Annotated[str, AfterValidator(one_line)]  # as it is shown, on terminals too


class Manifest(_Frozen):
    """The content of `manifest.json`; paths are relative to it and use forward slashes."""

    format_version: Literal[3] = FORMAT_VERSION
    name: Annotated[str, AfterValidator(to_model_name)]
    variant: Literal["base", "refine", "two_stage"]
    precision: Precision = "fp32"  # what the engine computes in
    graphs: dict[str, str]  # form -> file; see `bundle.layout`
    tensorrt: TensorRTPlan | None = None  # a plan for one kind of GPU, beside the graphs
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess
    classes: tuple[ClassInfo, ...] = Field(min_length=1)
    num_detections: int = Field(ge=1)  # of the graph's top-k
    max_batch_size: int = Field(default=8, ge=1, le=1024)  # every start runs one of this size
    # Which images may share a batch. "any": export found that padding changes no answer.
    batches: Batches = "equal_shapes"
    metrics: dict[str, float] = {}  # AP, AP50, ... on the validation set
    thresholds: Thresholds | None = None  # None if it was not evaluated or found nothing
    provenance: dict[str, Any] = {}
    samples: tuple[str, ...] = ()
    files: dict[str, str] = {}  # every other file -> SHA-256; filled in by `save`

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        ids = [info.id for info in self.classes]
        if len(set(ids)) != len(ids):
            raise ValueError(f"expected distinct class ids, got {ids}")
        if self.thresholds and (unknown := set(self.thresholds.by_class) - set(ids)):
            raise ValueError(f"expected thresholds of classes {ids}, got {sorted(unknown)}")
        return self

    @property
    def threshold(self) -> float:
        """The threshold of classes that have no separate one."""
        return self.thresholds.overall.threshold if self.thresholds else DEFAULT_THRESHOLD

    def lowest_scores(self, threshold: float | None = None) -> Float32Array:
        """(K,) float32, by label: the lowest score to show, which is `threshold` if given."""
        if threshold is None and self.thresholds:
            return self.thresholds.lowest_scores([info.id for info in self.classes])
        fixed = self.threshold if threshold is None else threshold
        return np.full(len(self.classes), fixed, np.float32)

    @property
    def assumed(self) -> tuple[str, ...]:
        """What the conversion assumed because the published weights do not say it, in sentences."""
        weights = self.provenance.get("weights")
        given = weights.get("assumed") if isinstance(weights, dict) else None
        return tuple(map(str, given)) if isinstance(given, list) else ()

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the manifest of a bundle and check every file it names.

        Raises:
            ValueError: no readable manifest of this format, or a file is missing, changed or
                outside the directory. The message names the file and the command to run.
        """
        manifest = cls._parse(directory / MANIFEST_FILE)
        for name, expected in manifest.files.items():
            path = _path_inside(directory, name)
            found = _sha256_of_bundled(path)
            if found != expected:
                raise ValueError(
                    f"{path}: expected SHA-256 {expected}, got {found}: the file was changed "
                    f"after export; {REMEDY}"
                )
        manifest._check_references(directory)
        return manifest

    def save(self, directory: Path) -> Self:
        """Hash every file in the directory but the cache, then write the manifest atomically.

        Returns the manifest as written. Raises ValueError if a graph or sample is missing.
        """
        path = directory / MANIFEST_FILE
        kept_out = {path, *(directory / CACHE_FOLDER).rglob("*")}
        files = sorted(file for file in directory.rglob("*") if file.is_file())
        hashes = {
            file.relative_to(directory).as_posix(): _sha256(file)
            for file in files
            if file not in kept_out
        }
        manifest = self.model_copy(update={"files": hashes})
        manifest._check_references(directory)
        write_atomically(path, (manifest.model_dump_json(indent=2) + "\n").encode())
        return manifest

    @classmethod
    def _parse(cls, path: Path) -> Self:
        try:
            content = read_json(require_file(path).read_bytes(), path)
            _require_writable(content, path)
        except FileNotFoundError:
            raise ValueError(f"{path}: no bundle there; {REMEDY}") from None
        except OSError as error:
            raise ValueError(_tell_unreadable(path, error)) from error
        except ValueError as error:
            raise ValueError(f"{error}; {REMEDY}") from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path}: expected format_version {FORMAT_VERSION}, got {version}; {REMEDY}"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ValueError(f"{path}: {describe_faults(error)}; {REMEDY}") from error

    def _check_references(self, directory: Path) -> None:
        plans = (self.tensorrt.file,) if self.tensorrt else ()
        named = *self.graphs.values(), *plans, *self.samples
        for name in (*named, KNOWN_ANSWERS_FILE):
            if name not in self.files:
                raise ValueError(
                    f"{directory / name}: the bundle needs this file and does not have it; {REMEDY}"
                )


class Bundle(NamedTuple):
    """A bundle: its directory and its manifest, either checked or being written."""

    directory: Path
    manifest: Manifest

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Load a bundle and check every file; raises ValueError like `Manifest.load`."""
        return cls(directory, Manifest.load(directory))

    def require_in_place(self) -> None:
        """Raises ValueError if another bundle is in the directory by now, or none.

        What was read of it since then is not what was checked.
        """
        if Manifest._parse(self.directory / MANIFEST_FILE) != self.manifest:
            raise ValueError(
                f"{self.directory}: another bundle was put there while this one was being opened; "
                "start the service, or reload it, again"
            )

    def save(self) -> Self:
        """Hash the files and write the manifest; see `Manifest.save`."""
        return self._replace(manifest=self.manifest.save(self.directory))

    def with_manifest(self, **changes: Any) -> Self:
        """The same directory with some fields of the manifest changed, not saved yet."""
        return self._replace(manifest=self.manifest.model_copy(update=changes))

    def graph(self, form: str) -> Path:
        """The file of a graph. Raises ValueError if the bundle has none of this form."""
        graphs = self.manifest.graphs
        if form not in graphs:
            raise ValueError(
                f"{self.directory}: expected a graph {form!r}, got {sorted(graphs)}; {REMEDY}"
            )
        return self.directory / graphs[form]


def _require_writable(content: Any, path: Path) -> None:
    """Refuse what Python reads as JSON, but no answer can hold: NaN, and halves of characters."""
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def version_of(manifest: Manifest) -> str:
    """Twelve hex digits that change with any byte of the bundle, through the manifest's hashes."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()[:12]


def _path_inside(directory: Path, name: str) -> Path:
    path = directory / name
    is_plain = name and not {"\\", "\0"} & {*name}
    if not is_plain or not _real(path).is_relative_to(_real(directory)):
        raise ValueError(f"{path}: outside the bundle's directory; {REMEDY}")
    return path


def _real(path: Path) -> Path:
    """The path without symbolic links; unlike `resolve`, a loop of links is no error here."""
    return Path(os.path.realpath(path))


def _sha256_of_bundled(path: Path) -> str:
    """The digest of a file that a manifest names; ValueError if it cannot be read."""
    try:
        return _sha256(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: the manifest names it, but it is missing; {REMEDY}") from None
    except OSError as error:
        raise ValueError(_tell_unreadable(path, error)) from error


def _tell_unreadable(path: Path, error: OSError) -> str:
    """The remedy depends on the reason: a new bundle would not be readable either."""
    if isinstance(error, PermissionError):
        return f"{path}: {error.strerror}; let the user that runs this read the bundle's files"
    return f"{path}: cannot be read: {error.strerror or error}; {REMEDY}"


def _sha256(path: Path) -> str:
    with require_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
