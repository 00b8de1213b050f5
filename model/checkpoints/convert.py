"""Published weights -> checkpoint: mmdetection 2.x and 3.x, the authors', Hugging Face.

Layout, variant and sizes are read off the tensors. `published_layouts.py` holds the key tables.
"""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bundle.manifest import ClassInfo
from model.checkpoints.checkpoint_file import Checkpoint, first_mismatch
from model.checkpoints.published_file import PublishedFile, read_published
from model.checkpoints.published_layouts import COCO_CLASSES, Layout, find_layout, rename
from model.config import ModelConfig, Variant
from model.configs import base, refine, two_stage
from model.network.deformable_detr import DeformableDetr

NUM_COCO_OUTPUTS = 91  # of the authors' heads: the output's index is the category id
Tensors = dict[str, Tensor]


def convert(
    source: Path, *, annotations: Path | None = None, num_heads: int | None = None
) -> Checkpoint:
    """Reads a published file as a checkpoint of this project.

    Args:
        source: .pth or .bin (read without executing anything in it) or .safetensors. A
            config.json beside a Hugging Face file gives class names and sizes.
        annotations: COCO annotation file whose categories, in order, are the model's outputs.
        num_heads: attention heads. The tensors do not tell; without it the file's own settings
            are taken, or 8.

    Raises:
        ValueError: not a Deformable DETR of a known layout; names the first tensor that is
            missing, left over or of another shape.
    """
    file = read_published(source)
    layout = find_layout(file.tensors)
    if layout is None:
        first = ", ".join(list(file.tensors)[:3]) or "none at all"
        raise ValueError(
            f"{source} follows no known layout of Deformable DETR ({', '.join(Layout)}); "
            f"its first tensors are: {first}"
        )
    tensors = _rename_all(source, file.tensors, layout)
    if len(tensors.get("level_embed", ())) in (1, 2):
        raise ValueError(
            f"{source} is a single-scale model (level_embed has {len(tensors['level_embed'])} "
            "row); only multi-scale models, with 3 levels or more, are supported"
        )
    _pack_attention(tensors)
    variant = _settle_heads(source, tensors, layout)
    classes = _settle_classes(source, tensors, file, layout, annotations)
    config = _infer_config(source, tensors, file, variant, num_heads)
    with torch.device("meta"):
        expected = DeformableDetr(config).state_dict()
    if fault := first_mismatch(expected, tensors):
        raise ValueError(f"{source} ({layout}, {variant}): {fault}; the file is not whole, or "
                         "its model differs from the published ones")  # fmt: skip
    bad = next((name for name, x in tensors.items() if not torch.isfinite(x).all()), None)
    if bad:
        raise ValueError(f"{source}: tensor {bad} holds a value that is not finite")
    recipe = {Variant.BASE: base, Variant.REFINE: refine, Variant.TWO_STAGE: two_stage}[variant]()
    provenance = {
        "source": source.name,
        "sha256": sha256(source),
        "layout": str(layout),
        "options": {
            "classes": annotations.name if annotations else None,
            "num_heads": num_heads,
        },
    }
    state = {name: tensors[name].contiguous() for name in expected}
    return Checkpoint(source, replace(recipe, model=config), classes, provenance, {}, state)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rename_all(source: Path, theirs: Tensors, layout: Layout) -> Tensors:
    ours: Tensors = {}
    for key, tensor in theirs.items():
        if key.endswith(".num_batches_tracked"):
            continue  # a counter of training steps; batch norm is fixed here
        name = rename(key, layout)
        if name is None:
            raise ValueError(
                f"{source} ({layout}): tensor {key} {tuple(tensor.shape)} is left over"
            )
        if name in ours:
            raise ValueError(f"{source} ({layout}): tensor {key} is there under two names")
        ours[name] = tensor.float()
    return ours


def _pack_attention(tensors: Tensors) -> None:
    """Stacks separate query, key and value projections (Hugging Face) as in_proj."""
    for query in [name for name in tensors if ".q_proj." in name]:
        parts = [query.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if all(part in tensors for part in parts):
            packed = query.replace(".q_proj.", ".in_proj_")
            tensors[packed] = torch.cat([tensors.pop(part) for part in parts])


def _settle_heads(source: Path, tensors: Tensors, layout: Layout) -> Variant:
    """Gives every head its place: one for base, one per layer, one on the encoder."""
    has_copies = any(name.startswith("copy.box_heads.") for name in tensors)
    for copy in [name for name in tensors if name.startswith("copy.")]:
        name, tensor = copy.removeprefix("copy."), tensors.pop(copy)
        if not torch.equal(tensors.setdefault(name, tensor), tensor):
            raise ValueError(
                f"{source} ({layout}): tensor {name} is there twice, with other values"
            )
    num_layers = _count(tensors, r"decoder\.layers\.(\d+)\.")
    if any(name.startswith("queries.memory_") for name in tensors):
        variant = Variant.TWO_STAGE
    elif has_copies or not _heads_are_equal(tensors):
        variant = Variant.REFINE
    else:
        for name in [x for x in tensors if re.match(r"(class|box)_heads\.[1-9]", x)]:
            del tensors[name]
        return Variant.BASE
    if layout is Layout.HUGGING_FACE and "class_heads.1.weight" not in tensors:
        _untie_class_heads(tensors, num_layers + (variant is Variant.TWO_STAGE))
    if variant is Variant.TWO_STAGE:
        for name in [x for x in tensors if re.match(rf"(class|box)_heads\.{num_layers}\.", x)]:
            renamed = re.sub(r"^(class|box)_heads\.\d+\.", r"queries.\1_head.", name)
            tensors[renamed] = tensors.pop(name)
    return variant


def _heads_are_equal(tensors: Tensors) -> bool:
    heads = [name for name in tensors if re.match(r"(class|box)_heads\.[1-9]", name)]
    firsts = [re.sub(r"_heads\.\d+\.", "_heads.0.", name) for name in heads]
    return all(
        first in tensors and torch.equal(tensors[name], tensors[first])
        for name, first in zip(heads, firsts, strict=True)
    )


def _untie_class_heads(tensors: Tensors, count: int) -> None:
    """transformers 5.x ties the class heads of a new model, and its files hold the one."""
    for leaf in ("weight", "bias"):
        if (first := tensors.get(f"class_heads.0.{leaf}")) is not None:
            tensors.update({f"class_heads.{i}.{leaf}": first.clone() for i in range(1, count)})


def _settle_classes(
    source: Path, tensors: Tensors, file: PublishedFile, layout: Layout, annotations: Path | None
) -> tuple[ClassInfo, ...]:
    """Names of the outputs; the 91 outputs of COCO's category ids become its 80 classes."""
    count = len(_get(source, tensors, "class_heads.0.bias"))
    by_id = layout in (Layout.AUTHORS, Layout.HUGGING_FACE)
    if annotations is not None:
        classes = _read_categories(annotations)
        if by_id and len(classes) != count and all(entry.id < count for entry in classes):
            _keep_outputs(tensors, [entry.id for entry in classes])
            return classes
    elif by_id and count == NUM_COCO_OUTPUTS:
        _keep_outputs(tensors, [entry.id for entry in COCO_CLASSES])
        return COCO_CLASSES
    else:
        classes = _name_classes(file.class_names, count, first_id=0 if by_id else 1)
    if len(classes) != count:
        raise ValueError(
            f"{source} has {count} classes, but {len(classes)} are named; give their names "
            "by --classes with the annotation file it was trained on"
        )
    return classes


def _read_categories(annotations: Path) -> tuple[ClassInfo, ...]:
    try:
        categories = json.loads(annotations.read_text())["categories"]
        return tuple(ClassInfo(id=entry["id"], name=entry["name"]) for entry in categories)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{annotations} is no COCO annotation file ({error!r})") from error


def _name_classes(
    names: tuple[str, ...] | None, count: int, *, first_id: int
) -> tuple[ClassInfo, ...]:
    coco = tuple(entry.name for entry in COCO_CLASSES)
    if names == coco or (names is None and count == len(coco)):
        return COCO_CLASSES
    names = names or tuple(f"class {first_id + label}" for label in range(count))
    return tuple(ClassInfo(id=first_id + label, name=name) for label, name in enumerate(names))


def _keep_outputs(tensors: Tensors, ids: list[int]) -> None:
    """Drops the rows of class heads that stand for no class.

    Output 0 of the encoder's head is "an object", whatever the classes are: it stays first.
    """
    for name, tensor in tensors.items():
        if name.startswith("class_heads."):
            tensors[name] = tensor[ids]
        elif name.startswith("queries.class_head."):
            tensors[name] = tensor[[0, *ids[1:]]]


def _infer_config(
    source: Path, tensors: Tensors, file: PublishedFile, variant: Variant, num_heads: int | None
) -> ModelConfig:
    num_levels, hidden_dim = _get(source, tensors, "level_embed").shape
    heads = num_heads or file.num_heads or ModelConfig.num_heads
    rows = len(_get(source, tensors, "decoder.layers.0.cross_attn.attention_weights.bias"))
    if rows % (heads * num_levels):
        raise ValueError(
            f"{source}: {rows} attention weights cannot be split over {heads} heads and "
            f"{num_levels} levels; give the number of heads by --num-heads"
        )
    table = tensors.get("queries.embedding.weight")
    num_queries = len(table) if table is not None else file.num_queries or ModelConfig.num_queries
    num_classes = len(tensors["class_heads.0.bias"])
    blocks = tuple(_count(tensors, rf"backbone\.layer{stage}\.(\d+)\.") for stage in range(1, 5))
    return ModelConfig(
        variant=variant,
        num_classes=num_classes,
        hidden_dim=hidden_dim,
        num_heads=heads,
        num_levels=num_levels,
        num_points=rows // (heads * num_levels),
        num_encoder_layers=_count(tensors, r"encoder\.layers\.(\d+)\."),
        num_decoder_layers=_count(tensors, r"decoder\.layers\.(\d+)\."),
        ffn_dim=len(_get(source, tensors, "decoder.layers.0.ffn.linear1.bias")),
        num_queries=num_queries,
        num_detections=min(ModelConfig.num_detections, num_queries * num_classes),
        backbone_width=len(_get(source, tensors, "backbone.conv1.weight")),
        backbone_blocks=blocks,  # type: ignore[arg-type]  # four, of the range above
        input_proj_bias="input_proj.0.conv.bias" in tensors,
    )


def _get(source: Path, tensors: Tensors, name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{source}: tensor {name} is missing; the file is not whole")
    return tensors[name]


def _count(tensors: Tensors, pattern: str) -> int:
    """How many indices there are: one more than the largest that the pattern captures."""
    found = (re.match(pattern, name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)
