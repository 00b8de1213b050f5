"""Opens files of other projects, and reads their tensors and settings.

Files by torch.save are pickles. They are read with weights_only=True, which builds only tensors,
plain containers and the classes allowed by name below.
"""

import argparse
import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from model.checkpoints.checkpoint_file import METADATA_KEY
from model.checkpoints.file_kind import is_safetensors, name_foreign_kind, require_file
from model.checkpoints.mmdet_config import from_mmdet
from model.checkpoints.published_layouts import Layout
from model.checkpoints.published_preprocess import PREPROCESSOR_FILE, from_preprocessor_config
from model.checkpoints.published_settings import Settings, from_authors, from_hugging_face
from model.checkpoints.shards import index_of, is_index, read_json_object, read_shards


class _Inert:
    """Replaces objects in a file's metadata that are not needed."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# What files of these projects hold besides tensors. Only the first two are really built; for the
# rest (training history of mmengine, numpy numbers) none of the named code runs.
_SAFE_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    defaultdict,
    *(
        (_Inert, name)
        for name in (
            "mmengine.logging.history_buffer.HistoryBuffer",
            "builtins.getattr",  # used by history buffers to refer to their methods
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.ndarray",
            "numpy.dtype",
            "pathlib.PosixPath",
        )
    ),
]


# What torch.load raises on files with flipped bytes, found by trying thousands.
_DAMAGE = (
    pickle.UnpicklingError,
    SafetensorError,  # for files with that suffix
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    OverflowError,
)


def read_content(source: Path) -> Mapping[Any, Any]:
    """The content of a published file: tensors by name, or containers around them.

    Raises:
        ValueError: it is not a PyTorch or safetensors file, or cannot be read without executing
            code; says what it is.
    """
    require_file(source)
    if is_index(source):
        return read_shards(source, _read_file)
    if index := index_of(source):
        raise ValueError(
            f"{source} is one of several parts of a model; name {index}, which lists them all"
        )
    return _read_file(source)


def _read_file(source: Path) -> Mapping[Any, Any]:
    if kind := name_foreign_kind(source):
        raise ValueError(f"{source} is {kind}")
    if is_safetensors(source):
        return _load_safetensors(source)
    content = _load_pickle(source)
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds a {type(content).__name__}, expected a state dict")
    return content


def read_settings(source: Path, content: Mapping[Any, Any], *, layout: Layout) -> Settings:
    """What a file, or JSON files beside it, say about the model besides its tensors.

    Raises:
        ValueError: a setting that changes the arithmetic is not supported; names it.
    """
    if layout is Layout.AUTHORS and isinstance(content.get("args"), argparse.Namespace | Mapping):
        return from_authors(content["args"])
    if layout in (Layout.MMDET2, Layout.MMDET3) and isinstance(content.get("meta"), Mapping):
        return from_mmdet(content["meta"])
    if layout is not Layout.HUGGING_FACE:
        return Settings()
    config = _read_beside(source, "config.json")
    preprocessor = _read_beside(source, PREPROCESSOR_FILE)
    settings = Settings() if config is None else from_hugging_face(config)
    if preprocessor is None:
        return settings
    return replace(settings, preprocess=from_preprocessor_config(preprocessor))


def _read_beside(source: Path, name: str) -> dict[str, Any] | None:
    path = source.with_name(name)
    return read_json_object(path) if path.is_file() else None


def _load_safetensors(source: Path) -> dict[str, Tensor]:
    try:
        with safe_open(source, framework="pt") as opened:
            if METADATA_KEY in (opened.metadata() or {}):
                raise ValueError(f"{source} is a checkpoint of this project already")
        return safetensors.torch.load_file(source)
    except SafetensorError as error:
        raise ValueError(f"{source} is not a complete safetensors file ({error})") from error


def _load_pickle(source: Path) -> Any:
    try:
        with safe_globals(_SAFE_GLOBALS):
            return torch.load(source, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        unknown = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if unknown is None:
            # torch's own message for a bad pickle advises turning safe loading off.
            is_text = not isinstance(error, pickle.UnpicklingError) and str(error)
            reason = re.split(r"\n|\. ", str(error))[0] if is_text else "damaged, or not a pickle"
            raise ValueError(
                f"{source} is not a complete file of torch.save ({reason}); download or copy it "
                "again"
            ) from error
        raise ValueError(
            f"{source} holds an object of {unknown[1]}, which is not loaded because that could run "
            "code. If you trust the file, strip it: "
            "c = torch.load(SRC, map_location='cpu', weights_only=False); "
            "torch.save(c.get('state_dict', c.get('model', c)), DST); then convert DST"
        ) from error
