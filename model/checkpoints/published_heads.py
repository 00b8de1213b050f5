"""The class and box heads of a published model: how many, and which outputs they keep."""

import re

import torch

from model.checkpoints.published_classes import Outputs
from model.checkpoints.published_layouts import Layout
from model.checkpoints.published_settings import Settings
from model.checkpoints.state_dicts import Tensors
from model.config import Variant


def settle_heads(tensors: Tensors, layout: Layout, *, settings: Settings) -> Variant:
    """Assign every head; returns the variant that the heads imply."""
    # The decoder has its own box heads if it refines boxes from layer to layer.
    has_copies = any(name.startswith("copy.box_heads.") for name in tensors)
    for copy in [name for name in tensors if name.startswith("copy.")]:
        name, tensor = copy.removeprefix("copy."), tensors.pop(copy)
        if not torch.equal(tensors.setdefault(name, tensor), tensor):
            raise ValueError(f"{layout}: tensor {name} appears twice, with different values")
    num_layers = count_indices(tensors, r"decoder\.layers\.(\d+)\.")
    refines = settings.get("with_box_refine") or has_copies or not _heads_are_equal(tensors)
    is_two_stage = any(name.startswith("queries.memory_") for name in tensors)
    if is_two_stage and not refines:
        raise ValueError(
            "it is a two-stage model whose layers share one head (with_box_refine = False); "
            "two stages are only supported with box refinement"
        )
    if not refines:
        _require_shared_heads(tensors, num_layers)
        for name in [x for x in tensors if re.match(r"(class|box)_heads\.[1-9]", x)]:
            del tensors[name]
        return Variant.BASE
    if layout is Layout.HUGGING_FACE and "class_heads.1.weight" not in tensors:
        _untie_class_heads(tensors, num_layers + is_two_stage)
    if not is_two_stage:
        return Variant.REFINE
    for name in [x for x in tensors if re.match(rf"(class|box)_heads\.{num_layers}\.", x)]:
        renamed = re.sub(r"^(class|box)_heads\.\d+\.", r"queries.\1_head.", name)
        tensors[renamed] = tensors.pop(name)
    return Variant.TWO_STAGE


def _require_shared_heads(tensors: Tensors, num_layers: int) -> None:
    """Raise ValueError unless the shared heads are stored once, or once for every layer."""
    for kind in ("class", "box"):
        count = count_indices(tensors, rf"{kind}_heads\.(\d+)\.")
        if count > 1 and count != num_layers:
            raise ValueError(
                f"the file has {count} {kind} heads for {num_layers} decoder layers, expected one "
                "for each layer, or one for all; the file is incomplete"
            )


def _heads_are_equal(tensors: Tensors) -> bool:
    heads = [name for name in tensors if re.match(r"(class|box)_heads\.[1-9]", name)]
    firsts = [re.sub(r"_heads\.\d+\.", "_heads.0.", name) for name in heads]
    return all(
        first in tensors and torch.equal(tensors[name], tensors[first])
        for name, first in zip(heads, firsts, strict=True)
    )


def _untie_class_heads(tensors: Tensors, count: int) -> None:
    """Copy the class head: transformers 5.x ties those of a new model and stores only one."""
    for leaf in ("weight", "bias"):
        if (first := tensors.get(f"class_heads.0.{leaf}")) is not None:
            tensors.update({f"class_heads.{i}.{leaf}": first.clone() for i in range(1, count)})


def keep_outputs(tensors: Tensors, outputs: Outputs) -> None:
    """Drop the rows of class heads that stand for no class.

    Output 0 of the encoder's head means "an object", whatever the classes: it stays first.
    """
    kept, count = list(outputs.kept), len(tensors["class_heads.0.bias"])
    if kept == list(range(count)):
        return
    for name, tensor in tensors.items():
        if name.startswith(("class_heads.", "queries.class_head.")) and len(tensor) != count:
            raise ValueError(f"tensor {name} has {len(tensor)} rows, expected {count} outputs")
        if name.startswith("class_heads."):
            tensors[name] = tensor[kept]
        elif name.startswith("queries.class_head."):
            tensors[name] = tensor[[0, *kept[1:]]]


def count_indices(tensors: Tensors, pattern: str) -> int:
    """How many indices there are: one more than the largest that the pattern captures."""
    found = (re.match(pattern, name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)
