"""Converts published weights to checkpoints: mmdetection 2.x and 3.x, the authors', Hugging Face.

Layout, variant and sizes are inferred from the tensors. `published_layouts.py` has the key tables.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundle.preprocess import Preprocess
from model.checkpoints.checkpoint_file import Checkpoint, first_mismatch
from model.checkpoints.file_kind import sha256
from model.checkpoints.mmdet_config import average_is_in_weights
from model.checkpoints.published_classes import Outputs, settle_outputs
from model.checkpoints.published_file import read_content, read_settings
from model.checkpoints.published_heads import count_indices, keep_outputs, settle_heads
from model.checkpoints.published_layouts import Layout, find_layout, rename
from model.checkpoints.published_settings import Settings
from model.checkpoints.shards import is_index, parts_of
from model.checkpoints.state_dicts import Tensors, find_state
from model.config import ModelConfig, Variant
from model.configs import base, refine, two_stage
from model.network.deformable_detr import DeformableDetr

log = logging.getLogger(__name__)
_ASSUMED_SIZE = (
    f"the file does not say how large images are: a short side of {Preprocess().short_side} and a "
    f"long side of at most {Preprocess().long_side} pixels were assumed, as published"
)
_RESNET_BLOCKS = ((3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3))  # of ResNet-50, 101 and 152
# Tensors of convolutions, batch norms, projections and feed-forward layers, which nobody starts
# with zeros: a gap in a file shows in one of them.
_NEVER_ZERO = ("running_var", "value_proj.weight", "linear1.weight", "conv1.weight",
               "conv2.weight", "conv3.weight", "in_proj_weight")  # fmt: skip
_RECIPES = {Variant.BASE: base, Variant.REFINE: refine, Variant.TWO_STAGE: two_stage}


def convert(
    source: Path,
    *,
    annotations: Path | None = None,
    num_heads: int | None = None,
    num_queries: int | None = None,
) -> Checkpoint:
    """Convert a published file to a checkpoint of this project.

    The provenance lists, in sentences, what was chosen ("notes") and what the file does not say
    and was assumed ("assumed").

    Args:
        source: a file by torch.save (nothing in it is executed) or safetensors, or the index of
            several. A config.json beside a Hugging Face file gives class names and sizes, a
            preprocessor_config.json the size of images.
        annotations: COCO annotation file that the model was trained on.
        num_heads: attention heads, which the tensors do not show. By default the file's own
            settings decide, or else 8.
        num_queries: queries of a two-stage model. By default the file's own settings decide, or
            else 300.

    Raises:
        ValueError: not a Deformable DETR of a known layout, or one with settings that change the
            arithmetic; names the setting, or the first tensor that is missing, left over or
            misshapen.
    """
    try:
        return _convert(source, annotations, num_heads, num_queries)
    except ValueError as error:
        if str(source) in str(error):
            raise
        raise ValueError(f"{source}: {error}") from error


def _convert(
    source: Path, annotations: Path | None, num_heads: int | None, num_queries: int | None
) -> Checkpoint:
    content = read_content(source)
    meta = content.get("meta")
    found, notes = find_state(
        content,
        buffers_are_average=not (isinstance(meta, Mapping) and average_is_in_weights(meta)),
    )
    layout = _layout_of(source, found)
    settings = read_settings(source, content, layout=layout)
    tensors = _rename_all(found, layout)
    _require_multi_scale(source, tensors)
    _pack_attention(tensors)
    variant = settle_heads(tensors, layout, settings=settings)
    outputs = settle_outputs(
        len(_get(tensors, "class_heads.0.bias")),
        settings,
        annotations=annotations,
        index_is_id=layout in (Layout.AUTHORS, Layout.HUGGING_FACE),
    )
    keep_outputs(tensors, outputs)
    assumed = [outputs.assumed] if outputs.assumed else []
    sizes, untold = _settle_sizes(tensors, settings, variant, num_heads, num_queries)
    assumed += untold
    if settings.preprocess is None and layout is not Layout.AUTHORS:  # their code has only one size
        assumed.append(_ASSUMED_SIZE)
    config = _infer_config(
        tensors, variant, *sizes, limit=settings.get("num_detections") or ModelConfig.num_detections
    )
    _require_agreement(config, settings)
    assumed += _unusual_depths(config, settings)
    _require_whole(source, tensors, config, layout)
    for sentence in [*notes, *assumed]:
        log.warning("%s: %s", source.name, sentence)
    provenance = _provenance(source, layout, outputs=outputs, notes=notes, assumed=assumed) | {
        "options": {
            "classes": annotations.name if annotations else None,
            "num_heads": num_heads,
            "num_queries": num_queries,
        },
    }
    state = {name: x.contiguous() for name, x in tensors.items()}
    recipe = replace(
        _RECIPES[variant](), model=config, preprocess=settings.preprocess or Preprocess()
    )
    return Checkpoint(source, recipe, outputs.classes, provenance, {}, state)


def _layout_of(source: Path, tensors: Tensors) -> Layout:
    if layout := find_layout(tensors):
        return layout
    first = ", ".join(list(tensors)[:3]) or "none at all"
    raise ValueError(
        f"{source} follows no known layout of Deformable DETR ({', '.join(Layout)}); "
        f"its first tensors are: {first}"
    )


def _require_multi_scale(source: Path, tensors: Tensors) -> None:
    if len(tensors.get("level_embed", ())) in (1, 2):
        raise ValueError(
            f"{source} has too few feature levels: {len(tensors['level_embed'])}, by level_embed; "
            "only multi-scale models, with 3 levels or more, are supported"
        )


def _provenance(
    source: Path, layout: Layout, *, outputs: Outputs, notes: list[str], assumed: list[str]
) -> dict[str, Any]:
    provenance: dict[str, Any] = {
        "source": source.name,
        "sha256": sha256(source),
        "layout": str(layout),
        "classes": outputs.source,
        "notes": notes,
        "assumed": assumed,
    }
    if is_index(source):
        provenance["parts"] = {part.name: sha256(part) for part in parts_of(source)}
    return provenance


def _rename_all(theirs: Tensors, layout: Layout) -> Tensors:
    ours: Tensors = {}
    for key, tensor in theirs.items():
        if key.endswith(".num_batches_tracked"):
            continue  # a counter of training steps; batch norm is fixed here
        name = rename(key, layout)
        if name is None:
            raise ValueError(f"{layout}: tensor {key} {tuple(tensor.shape)} is left over")
        if name in ours:
            raise ValueError(f"{layout}: tensor {key} has two names")
        if not _is_plain(tensor):
            raise ValueError(
                f"{layout}: tensor {key} is {_kind(tensor)}, expected floating-point numbers, each "
                "stored; convert the weights as they were trained, not a quantised or pruned copy"
            )
        ours[name] = tensor.float()
    if len(ours.get("level_embed", torch.ones(1, 1)).shape) != 2:
        raise ValueError(f"{layout}: level_embed has shape {tuple(ours['level_embed'].shape)}, "
                         "expected (levels, channels)")  # fmt: skip
    return ours


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds plain floating-point weights."""
    is_stored = tensor.layout == torch.strided and not tensor.is_meta and tensor.ndim > 0
    return is_stored and tensor.is_floating_point()


def _kind(tensor: Tensor) -> str:
    layout = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
    return f"{str(tensor.dtype).removeprefix('torch.')} ({layout}) of shape {tuple(tensor.shape)}"


def _pack_attention(tensors: Tensors) -> None:
    """Stack separate query, key and value projections (Hugging Face) into in_proj."""
    for query in [name for name in tensors if ".q_proj." in name]:
        parts = [query.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if all(part in tensors for part in parts):
            if len({tensors[part].shape for part in parts}) > 1:
                raise ValueError(f"tensors {', '.join(parts)} differ in shape")
            packed = query.replace(".q_proj.", ".in_proj_")
            tensors[packed] = torch.cat([tensors.pop(part) for part in parts])


def _settle_sizes(
    tensors: Tensors,
    settings: Settings,
    variant: Variant,
    num_heads: int | None,
    num_queries: int | None,
) -> tuple[tuple[int, int], list[str]]:
    """Numbers of attention heads and queries, and what had to be assumed about them."""
    assumed = []
    told = settings.get("num_heads")
    if told and num_heads and told != num_heads:
        raise ValueError(
            f"{settings.where} says {settings.names['num_heads']} = {told}, but --num-heads is "
            f"{num_heads}"
        )
    heads = num_heads or told
    if heads is None:
        heads = ModelConfig.num_heads
        assumed.append(f"the file does not say how many attention heads it has: {heads} were "
                       "assumed; give another number with --num-heads")  # fmt: skip
    if variant is not Variant.TWO_STAGE:
        table = len(_get(tensors, "queries.embedding.weight"))
        if num_queries not in (None, table):
            raise ValueError(f"--num-queries is {num_queries}, but the file has a table of {table}")
        return (heads, table), assumed
    queries = num_queries or settings.get("num_proposals")
    if queries is None:
        queries = ModelConfig.num_queries
        assumed.append(f"the file does not say how many proposals it has: {queries} were assumed; "
                       "give another number with --num-queries")  # fmt: skip
    return (heads, queries), assumed


def _infer_config(
    tensors: Tensors, variant: Variant, num_heads: int, num_queries: int, *, limit: int
) -> ModelConfig:
    num_levels, hidden_dim = _get(tensors, "level_embed").shape
    rows = len(_get(tensors, "decoder.layers.0.cross_attn.attention_weights.bias"))
    if rows % (num_heads * num_levels):
        raise ValueError(
            f"{rows} attention weights cannot be divided by num_heads={num_heads} and "
            f"num_levels={num_levels}; give the number of heads with --num-heads"
        )
    num_classes = len(tensors["class_heads.0.bias"])
    blocks = tuple(
        count_indices(tensors, rf"backbone\.layer{stage}\.(\d+)\.") for stage in range(1, 5)
    )
    return ModelConfig(
        variant=variant,
        num_classes=num_classes,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        num_levels=num_levels,
        num_points=rows // (num_heads * num_levels),
        num_encoder_layers=count_indices(tensors, r"encoder\.layers\.(\d+)\."),
        num_decoder_layers=count_indices(tensors, r"decoder\.layers\.(\d+)\."),
        ffn_dim=len(_get(tensors, "decoder.layers.0.ffn.linear1.bias")),
        num_queries=num_queries,
        num_detections=min(limit, num_queries * num_classes),
        backbone_width=len(_get(tensors, "backbone.conv1.weight")),
        backbone_blocks=blocks,  # type: ignore[arg-type]  # four, of the range above
        input_proj_bias="input_proj.0.conv.bias" in tensors,
    )


def _unusual_depths(config: ModelConfig, settings: Settings) -> list[str]:
    """What was counted and is not as published, so the file may have lost layers."""
    assumed = []
    for part in ("encoder", "decoder"):
        field = f"num_{part}_layers"
        count, published = getattr(config, field), getattr(ModelConfig, field)
        if count < published and settings.get(field) is None:
            assumed.append(f"the file does not say how many {part} layers the model has: it holds "
                           f"{count}, published models have {published}")  # fmt: skip
    if config.backbone_blocks not in _RESNET_BLOCKS:
        stages = ", ".join(map(str, config.backbone_blocks))
        assumed.append(f"the stages of the backbone have {stages} blocks in the file, unlike "
                       "ResNet-50, 101 and 152")  # fmt: skip
    return assumed


def _require_agreement(config: ModelConfig, settings: Settings) -> None:
    """Raise ValueError if the file's settings and its tensors describe different models."""
    is_two_stage = config.variant is Variant.TWO_STAGE
    actual = asdict(config) | {
        "with_box_refine": config.variant is not Variant.BASE,
        "two_stage": is_two_stage,
    }
    untold = ("num_classes", "num_detections", *(("num_queries",) if is_two_stage else ()))
    settings.require({name: value for name, value in actual.items() if name not in untold})


def _require_whole(source: Path, tensors: Tensors, config: ModelConfig, layout: Layout) -> None:
    with torch.device("meta"):
        expected = DeformableDetr(config).state_dict()
    if fault := first_mismatch(expected, tensors):
        raise ValueError(f"{source} ({layout}, {config.variant}): {fault}; the file is incomplete, "
                         "or its model differs from the published ones")  # fmt: skip
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name} holds a value that is not finite")
        if name.endswith(_NEVER_ZERO) and not tensor.any():
            raise ValueError(f"tensor {name} holds nothing but zeros, as in a file that was not "
                             "downloaded whole; download it again")  # fmt: skip
        if name.endswith("running_var") and tensor.min() < 0:
            raise ValueError(f"tensor {name} holds a negative variance; the file is damaged")


def _get(tensors: Tensors, name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing; the file is incomplete")
    return tensors[name]
