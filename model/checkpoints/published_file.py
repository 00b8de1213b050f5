"""Opens files of other projects: tensors under their own names, and what else they tell.

Files of torch.save are pickles. They are read with weights_only=True, which builds nothing but
tensors, plain containers and the classes allowed by name below.
"""

import argparse
import json
import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from model.checkpoints.checkpoint_file import METADATA_KEY


class _Inert:
    """Takes the place of an object in a file's metadata that is of no use here."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# What files of these projects hold beside tensors. Only the first two are made as themselves;
# for the rest (training history of mmengine, numpy numbers) nothing of the named code runs.
_SAFE_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    defaultdict,
    *(
        (_Inert, name)
        for name in (
            "mmengine.logging.history_buffer.HistoryBuffer",
            "builtins.getattr",  # how a history buffer names its own methods
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


# What torch.load raises on files with flipped bytes, found by trying some thousands.
_DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    OverflowError,
)


@dataclass(frozen=True)
class PublishedFile:
    """Tensors of a foreign file under its own names, and what else it says of the model.

    class_names: by output, None where the file has none. num_heads, num_queries: likewise.
    """

    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None
    num_heads: int | None = None
    num_queries: int | None = None


def read_published(source: Path) -> PublishedFile:
    """Opens a foreign file; ValueError if it cannot be read without executing code."""
    if not source.is_file():
        raise ValueError(f"{source}: no such file; name the weights file itself, not its directory")
    if source.suffix == ".safetensors":
        try:
            with safe_open(source, framework="pt") as opened:
                if METADATA_KEY in (opened.metadata() or {}):
                    raise ValueError(f"{source} is a checkpoint of this project already")
            return PublishedFile(safetensors.torch.load_file(source), **_hugging_face(source))
        except SafetensorError as error:
            raise ValueError(f"{source} is not a whole safetensors file ({error})") from error
    content = _load_pickle(source)
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds a {type(content).__name__}, expected a state dict")
    state = content.get("state_dict", content.get("model", content))
    tensors = {
        str(key).removeprefix("module."): value
        for key, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if isinstance(args := content.get("args"), argparse.Namespace):
        sizes = {"num_heads": getattr(args, "nheads", None),
                 "num_queries": getattr(args, "num_queries", None)}  # fmt: skip
        return PublishedFile(tensors, **sizes)
    if isinstance(meta := content.get("meta"), Mapping):
        return PublishedFile(tensors, **_mmdet(meta))
    return PublishedFile(tensors, **_hugging_face(source))


def _load_pickle(source: Path) -> Any:
    try:
        with safe_globals(_SAFE_GLOBALS):
            return torch.load(source, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        unknown = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if unknown is None:
            # torch's own text on a bad pickle advises to switch the safe reading off.
            is_text = not isinstance(error, pickle.UnpicklingError) and str(error)
            reason = str(error).split("\n")[0] if is_text else "damaged, or no pickle at all"
            raise ValueError(f"{source} is not a whole file of torch.save ({reason})") from error
        raise ValueError(
            f"{source} holds an object of {unknown[1]}, which is not loaded because that could run "
            "code. Where you trust the file, strip it: "
            "c = torch.load(SRC, map_location='cpu', weights_only=False); "
            "torch.save(c.get('state_dict', c.get('model', c)), DST); then convert DST"
        ) from error


def _mmdet(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Class names and sizes from the metadata of an mmdetection file, whose config is a text."""
    data_set = meta.get("dataset_meta") or meta
    names = data_set.get("classes", data_set.get("CLASSES"))
    config = str(meta.get("config", meta.get("cfg", "")))
    sizes = {"num_heads": r"num_heads\s*=\s*(\d+)", "num_queries": r"num_quer(?:y|ies)\s*=\s*(\d+)"}
    found = {size: re.search(pattern, config) for size, pattern in sizes.items()}
    return {
        "class_names": tuple(names) if names else None,
        **{size: int(match[1]) for size, match in found.items() if match},
    }


def _hugging_face(source: Path) -> dict[str, Any]:
    """Class names and sizes from the config.json beside a Hugging Face file, if there is one."""
    path = source.with_name("config.json")
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}, beside the weights, is not valid JSON: {error}") from error
    names = settings.get("id2label") or {}
    ordered = [names[key] for key in sorted(names, key=int)]
    return {
        "class_names": tuple(ordered) or None,
        "num_heads": settings.get("encoder_attention_heads"),
        "num_queries": settings.get("num_queries"),
    }
