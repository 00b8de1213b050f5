"""The layouts of other projects' Deformable DETR files: their tensor names, and COCO's classes.

One table of key renames per project; `rename` gives the name a tensor has in this repository.
"""

import re
from collections.abc import Iterable
from enum import StrEnum

from bundle.manifest import ClassInfo

_COCO = """
    1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat,
    10 traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird,
    17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe,
    27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee, 35 skis,
    36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard,
    42 surfboard, 43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife,
    50 spoon, 51 bowl, 52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot,
    58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch, 64 potted plant, 65 bed,
    67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard,
    77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book,
    85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush
"""
# The position in the tuple is the label; the ids have ten gaps.
COCO_CLASSES = tuple(
    ClassInfo(id=int(number), name=name) for number, name in re.findall(r"(\d+) ([a-z ]+)", _COCO)
)

NUM_BACKBONE_LEVELS = 3  # C3, C4, C5; further levels are computed from them


class Layout(StrEnum):
    """The project whose names a file uses."""

    MMDET2 = "mmdet2"  # mmdetection 2.x
    MMDET3 = "mmdet3"  # mmdetection 3.x
    AUTHORS = "authors"  # fundamentalvision/Deformable-DETR
    HUGGING_FACE = "hugging_face"  # transformers; the names of 4.x (all files) and of 5.x (modules)


# For each layout, a prefix that identifies it (the first match counts), and the prefix that is
# dropped before the lookup in its table.
_MARKS = {
    Layout.MMDET2: ("bbox_head.transformer.", "bbox_head.transformer."),
    Layout.MMDET3: ("bbox_head.cls_branches.", ""),
    Layout.AUTHORS: ("transformer.encoder.", "transformer."),
    Layout.HUGGING_FACE: ("model.encoder.", "model."),
}

# Prefixes, theirs: ours. {i} is a number, {extra} the same counted after the backbone's levels,
# {side} encoder or decoder. Class and box heads keep their index; the second copy of them that the
# authors' code stores is called copy.*.
_MMDET = {
    "backbone.": "backbone.",
    "neck.convs.{i}.conv.": "input_proj.{i}.conv.",
    "neck.convs.{i}.gn.": "input_proj.{i}.norm.",
    "neck.extra_convs.{i}.conv.": "input_proj.{extra}.conv.",
    "neck.extra_convs.{i}.gn.": "input_proj.{extra}.norm.",
    "bbox_head.cls_branches.{i}.": "class_heads.{i}.",
    "bbox_head.reg_branches.{i}.0.": "box_heads.{i}.layers.0.",
    "bbox_head.reg_branches.{i}.2.": "box_heads.{i}.layers.1.",
    "bbox_head.reg_branches.{i}.4.": "box_heads.{i}.layers.2.",
    "{side}.layers.{i}.norms.0.": "{side}.layers.{i}.norm1.",
    "{side}.layers.{i}.norms.1.": "{side}.layers.{i}.norm2.",
    "decoder.layers.{i}.norms.2.": "decoder.layers.{i}.norm3.",
}
_AUTHORS = {
    "input_proj.{i}.0.": "input_proj.{i}.conv.",
    "input_proj.{i}.1.": "input_proj.{i}.norm.",
    "level_embed": "level_embed",
    "reference_points.": "queries.reference_points.",
    "enc_output.": "queries.memory_proj.",
    "enc_output_norm.": "queries.memory_norm.",
    "pos_trans.": "queries.position_proj.",
    "pos_trans_norm.": "queries.position_norm.",
    "class_embed.{i}.": "class_heads.{i}.",
    "bbox_embed.{i}.": "box_heads.{i}.",
    "decoder.class_embed.{i}.": "copy.class_heads.{i}.",
    "decoder.bbox_embed.{i}.": "copy.box_heads.{i}.",
}
_TABLES = {
    Layout.MMDET2: _MMDET
    | {
        "level_embeds": "level_embed",
        "bbox_head.query_embedding.": "queries.embedding.",
        "reference_points.": "queries.reference_points.",
        "enc_output.": "queries.memory_proj.",
        "enc_output_norm.": "queries.memory_norm.",
        "pos_trans.": "queries.position_proj.",
        "pos_trans_norm.": "queries.position_norm.",
        "decoder.layers.{i}.attentions.0.attn.": "decoder.layers.{i}.self_attn.",
        "encoder.layers.{i}.attentions.0.": "encoder.layers.{i}.self_attn.",
        "decoder.layers.{i}.attentions.1.": "decoder.layers.{i}.cross_attn.",
        "{side}.layers.{i}.ffns.0.layers.0.0.": "{side}.layers.{i}.ffn.linear1.",
        "{side}.layers.{i}.ffns.0.layers.1.": "{side}.layers.{i}.ffn.linear2.",
    },
    Layout.MMDET3: _MMDET
    | {
        "level_embed": "level_embed",
        "query_embedding.": "queries.embedding.",
        "reference_points_fc.": "queries.reference_points.",
        "memory_trans_fc.": "queries.memory_proj.",
        "memory_trans_norm.": "queries.memory_norm.",
        "pos_trans_fc.": "queries.position_proj.",
        "pos_trans_norm.": "queries.position_norm.",
        "decoder.layers.{i}.self_attn.attn.": "decoder.layers.{i}.self_attn.",
        "encoder.layers.{i}.self_attn.": "encoder.layers.{i}.self_attn.",
        "decoder.layers.{i}.cross_attn.": "decoder.layers.{i}.cross_attn.",
        "{side}.layers.{i}.ffn.layers.0.0.": "{side}.layers.{i}.ffn.linear1.",
        "{side}.layers.{i}.ffn.layers.1.": "{side}.layers.{i}.ffn.linear2.",
    },
    Layout.AUTHORS: _AUTHORS
    | {
        "backbone.0.body.": "backbone.",
        "query_embed.": "queries.embedding.",
        "{side}.layers.{i}.self_attn.": "{side}.layers.{i}.self_attn.",
        "decoder.layers.{i}.cross_attn.": "decoder.layers.{i}.cross_attn.",
        "encoder.layers.{i}.norm1.": "encoder.layers.{i}.norm1.",
        "encoder.layers.{i}.norm2.": "encoder.layers.{i}.norm2.",
        "decoder.layers.{i}.norm2.": "decoder.layers.{i}.norm1.",  # after self-attention
        "decoder.layers.{i}.norm1.": "decoder.layers.{i}.norm2.",  # after cross-attention
        "decoder.layers.{i}.norm3.": "decoder.layers.{i}.norm3.",
        "{side}.layers.{i}.linear1.": "{side}.layers.{i}.ffn.linear1.",
        "{side}.layers.{i}.linear2.": "{side}.layers.{i}.ffn.linear2.",
    },
    Layout.HUGGING_FACE: _AUTHORS
    | {
        "backbone.conv_encoder.model.": "backbone.",
        "backbone.model.": "backbone.",
        "query_position_embeddings.": "queries.embedding.",
        "decoder.layers.{i}.self_attn.o_proj.": "decoder.layers.{i}.self_attn.out_proj.",
        "{side}.layers.{i}.self_attn.": "{side}.layers.{i}.self_attn.",  # q, k, v still separate
        "decoder.layers.{i}.encoder_attn.": "decoder.layers.{i}.cross_attn.",
        "{side}.layers.{i}.self_attn_layer_norm.": "{side}.layers.{i}.norm1.",
        "decoder.layers.{i}.encoder_attn_layer_norm.": "decoder.layers.{i}.norm2.",
        "encoder.layers.{i}.final_layer_norm.": "encoder.layers.{i}.norm2.",
        "decoder.layers.{i}.final_layer_norm.": "decoder.layers.{i}.norm3.",
        "{side}.layers.{i}.fc1.": "{side}.layers.{i}.ffn.linear1.",
        "{side}.layers.{i}.fc2.": "{side}.layers.{i}.ffn.linear2.",
        "{side}.layers.{i}.mlp.fc1.": "{side}.layers.{i}.ffn.linear1.",
        "{side}.layers.{i}.mlp.fc2.": "{side}.layers.{i}.ffn.linear2.",
    },
}


def _compile(prefix: str) -> re.Pattern[str]:
    """A pattern for names with this prefix, or for this exact name if it does not end in a dot."""
    pattern = re.escape(prefix).replace(r"\{i\}", r"(?P<i>\d+)")
    pattern = pattern.replace(r"\{side\}", "(?P<side>encoder|decoder)")
    return re.compile(pattern if prefix.endswith(".") else f"{pattern}$")


_PATTERNS = {
    layout: [(_compile(theirs), ours) for theirs, ours in table.items()]
    for layout, table in _TABLES.items()
}


def find_layout(keys: Iterable[str]) -> Layout | None:
    """The layout of a file with these tensor names; None if unknown."""
    keys = tuple(keys)
    for layout, (mark, _) in _MARKS.items():
        if any(key.startswith(mark) for key in keys):
            return layout
    return None


def find_prefixes(keys: Iterable[str]) -> list[str]:
    """The prefix of each model with a known layout; "" if its names have none."""
    found: dict[str, Layout] = {}
    for key in keys:
        for layout, (mark, _) in _MARKS.items():
            if match := re.match(rf"((?:[^.]+\.)*?){re.escape(mark)}", key):
                found.setdefault(match[1], layout)
                break
    # Below a prefix "model.", the encoder of mmdetection 3.x looks like that of Hugging Face.
    return [
        prefix
        for prefix, layout in found.items()
        if layout is not Layout.HUGGING_FACE or f"{prefix}model." not in found
    ]


def rename(key: str, layout: Layout) -> str | None:
    """Our name for a tensor; None if it is not in the layout's table."""
    key = key.removeprefix(_MARKS[layout][1])
    for pattern, ours in _PATTERNS[layout]:
        if match := pattern.match(key):
            groups = match.groupdict()
            extra = int(groups.get("i") or 0) + NUM_BACKBONE_LEVELS
            return ours.format(**groups, extra=extra) + key[match.end() :]
    return None
