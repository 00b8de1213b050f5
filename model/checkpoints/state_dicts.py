"""Finds the model's tensors in a file: their keys and prefixes, and which copy to take."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from model.checkpoints.published_layouts import find_prefixes

Tensors = dict[str, Tensor]
_AVERAGE = re.compile(r"(^|[._])(ema|teacher|averaged?|swa)([._]|$)", re.IGNORECASE)
_USUAL = ("state_dict", "model", "")  # keys of a model other than the moving average
# Compilation and sharding insert these between the names of modules.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_MMENGINE_AVERAGE, _MMENGINE_COUNTER = "ema_state_dict", "steps"
_MAX_DEPTH = 4


class _Copy(NamedTuple):
    """One model in a file: the keys that lead to its dict, its prefix there, its tensors."""

    path: str
    prefix: str
    tensors: Tensors
    aside: list[str]  # names in the dict without the prefix

    @property
    def place(self) -> str:
        return f"{self.path or 'the file'}{f', prefix {self.prefix}' if self.prefix else ''}"

    @property
    def is_average(self) -> bool:
        return bool(_AVERAGE.search(self.path) or _AVERAGE.search(self.prefix))


def find_state(
    content: Mapping[Any, Any], *, buffers_are_average: bool = True
) -> tuple[Tensors, list[str]]:
    """The tensors of a detector with a known layout, without prefixes, and which choice was made.

    Args:
        content: the content of a file: tensors by name, or containers around them.
        buffers_are_average: whether the `ema_*` buffers of mmdetection 2.x hold the moving
            average, rather than the weights as trained.

    Returns:
        Tensors under the names of their layout, and sentences for the log. If the layout is
        unknown, every tensor found.

    Raises:
        ValueError: it holds several models, none of them the moving average.
    """
    copies = [copy for path, tensors in _dicts(content) for copy in _split(path, tensors)]
    if not copies:
        return {name: x for _, tensors in _dicts(content) for name, x in tensors.items()}, []
    chosen = _choose(copies)
    notes = []
    if others := [copy.place for copy in copies if copy is not chosen]:
        kind = "the moving average" if chosen.is_average else "the model"
        notes.append(f"used as {kind}: {chosen.place}; ignored: {', '.join(others)}")
    elif chosen.aside:
        notes.append(
            f"ignored tensors without the prefix {chosen.prefix}: {len(chosen.aside)}, such as "
            f"{', '.join(chosen.aside[:3])}"
        )
    if _is_mmengine_average(content):
        notes.append("state_dict holds the moving average, as mmengine stores it")
    return _settle_buffers(chosen.tensors, notes, are_average=buffers_are_average), notes


def _dicts(content: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Tensors]]:
    """Every dict that holds tensors by name, with the keys that lead to it."""
    tensors = {_WRAPPERS.sub("", k): x for k, x in content.items()
               if isinstance(k, str) and isinstance(x, Tensor)}  # fmt: skip
    if tensors:
        yield path, tensors
    if path.count(".") + 1 >= _MAX_DEPTH:
        return
    for key, value in content.items():
        if isinstance(value, Mapping) and not str(key).startswith("optimizer"):
            if not path and key == _MMENGINE_AVERAGE and _is_mmengine_average(content):
                continue  # mmengine swaps them on saving: these are the weights as trained
            yield from _dicts(value, f"{path}.{key}" if path else str(key))


def _is_mmengine_average(content: Mapping[Any, Any]) -> bool:
    average = content.get(_MMENGINE_AVERAGE)
    return isinstance(average, Mapping) and _MMENGINE_COUNTER in average


def _split(path: str, tensors: Tensors) -> Iterator[_Copy]:
    for prefix in find_prefixes(tensors):
        own = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        yield _Copy(path, prefix, own, [k for k in tensors if not k.startswith(prefix)])


def _choose(copies: list[_Copy]) -> _Copy:
    pool = [copy for copy in copies if copy.is_average] or copies
    usual = [copy for path in _USUAL for copy in pool if copy.path == path]
    if len(pool) == 1 or (usual[:1] and len(usual) == 1):
        return (usual or pool)[0]
    raise ValueError(
        f"holds {len(pool)} models ({'; '.join(copy.place for copy in pool)}): store the tensors "
        "of one of them in a separate file"
    )


def _settle_buffers(tensors: Tensors, notes: list[str], *, are_average: bool) -> Tensors:
    """Handle mmdetection 2.x's second copy of the weights, in buffers with flattened names."""
    flattened = {f"ema_{name.replace('.', '_')}": name for name in tensors}
    buffers = {name: x for name, x in tensors.items() if re.match(r"ema_[^.]+$", name)}
    kept = {name: x for name, x in tensors.items() if name not in buffers}
    if not buffers:
        return kept
    if not are_average:
        notes.append("the ema_* buffers hold the weights as trained; the others, their moving "
                     "average, are used")  # fmt: skip
        return kept
    notes.append(f"the moving average is used, from {len(buffers)} ema_* buffers")
    for buffer, tensor in buffers.items():
        kept[flattened.get(buffer, buffer)] = tensor
    return kept
