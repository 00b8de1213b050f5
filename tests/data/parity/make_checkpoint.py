"""Write the tiny synthetic checkpoint of a variant in the file format of a published project.

usage: python -m tests.data.parity.make_checkpoint VARIANT FORMAT OUT
       VARIANT is base, refine or twostage; FORMAT mmdet2, mmdet3, authors, hf4 or hf5
"""

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.data.parity.synth_weights import canonical_mmdet, synth_state_dict

SEED = {"base": 101, "refine": 202, "twostage": 303}
FORMATS = ("mmdet2", "mmdet3", "authors", "hf4", "hf5")
NAMES = tuple(f"class{i}" for i in range(7))


def checkpoint(variant: str, file_format: str) -> dict[str, Any]:
    """What torch.save wrote in that project: its metadata around its names of the tensors."""
    if file_format in ("mmdet2", "mmdet3"):
        head = "num_query=20, transformer=dict(two_stage_num_proposals=20)"
        meta: dict[str, Any] = {"CLASSES": NAMES, "config": f"model = dict(bbox_head=dict({head}))"}
        if file_format == "mmdet3":
            meta = {"dataset_meta": {"classes": NAMES}, "cfg": "model = dict(num_queries=20)"}
        return {"meta": meta, "state_dict": mmdet_tensors(variant, file_format)}
    tensors = authors_tensors(mmdet_tensors(variant, "mmdet3"), variant)
    if file_format == "authors":
        args = argparse.Namespace(nheads=8, num_queries=20, lr_backbone_names=["backbone.0"])
        return {"model": tensors, "optimizer": {}, "lr_scheduler": {}, "epoch": 49, "args": args}
    return hf_tensors(tensors, version=int(file_format[-1]))


def mmdet_tensors(variant: str, file_format: str) -> dict[str, Tensor]:
    """The state dict under the names of mmdet2 or mmdet3; do not write into its tensors."""
    return dict(_mmdet_tensors(variant, file_format))


@cache
def _mmdet_tensors(variant: str, file_format: str) -> dict[str, Tensor]:
    listing = Path(__file__).with_name("tiny_shapes.json").read_text()
    shapes = json.loads(listing)[f"{file_format}_{variant}"]
    weights = synth_state_dict(shapes, SEED[variant], canonical_mmdet(variant))
    return {key: torch.from_numpy(value) for key, value in weights.items()}


def authors_tensors(mmdet3: dict[str, Tensor], variant: str) -> dict[str, Tensor]:
    """mmdet 3.x tensors as the authors store them: biased neck, heads once more in the decoder."""
    tensors = {
        mmdet3_to_authors(key): value
        for key, value in mmdet3.items()
        if not key.endswith("num_batches_tracked")
    }
    for key in [key for key in tensors if re.fullmatch(r"input_proj\.\d+\.0\.weight", key)]:
        tensors[key.replace("weight", "bias")] = torch.zeros(len(tensors[key]))
    copied = {"base": (), "refine": ("bbox_embed.",), "twostage": ("bbox_embed.", "class_embed.")}
    copies = [key for key in tensors if key.startswith(copied[variant])]
    return tensors | {f"transformer.decoder.{key}": tensors[key] for key in copies}


def mmdet3_to_authors(key: str) -> str:
    """The authors' name of a tensor of mmdet 3.x."""
    for pattern, name in (
        (r"backbone\.(.*)", r"backbone.0.body.\1"),
        (r"neck\.convs\.(\d)\.conv\.(.*)", r"input_proj.\1.0.\2"),
        (r"neck\.convs\.(\d)\.gn\.(.*)", r"input_proj.\1.1.\2"),
        (r"neck\.extra_convs\.0\.conv\.(.*)", r"input_proj.3.0.\1"),
        (r"neck\.extra_convs\.0\.gn\.(.*)", r"input_proj.3.1.\1"),
        (r"bbox_head\.cls_branches\.(.*)", r"class_embed.\1"),
        (r"bbox_head\.reg_branches\.(\d)\.0\.(.*)", r"bbox_embed.\1.layers.0.\2"),
        (r"bbox_head\.reg_branches\.(\d)\.2\.(.*)", r"bbox_embed.\1.layers.1.\2"),
        (r"bbox_head\.reg_branches\.(\d)\.4\.(.*)", r"bbox_embed.\1.layers.2.\2"),
        (r"query_embedding\.(.*)", r"query_embed.\1"),
        (r"level_embed", r"transformer.level_embed"),
        (r"memory_trans_fc\.(.*)", r"transformer.enc_output.\1"),
        (r"memory_trans_norm\.(.*)", r"transformer.enc_output_norm.\1"),
        (r"pos_trans_fc\.(.*)", r"transformer.pos_trans.\1"),
        (r"pos_trans_norm\.(.*)", r"transformer.pos_trans_norm.\1"),
        (r"reference_points_fc\.(.*)", r"transformer.reference_points.\1"),
    ):
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    key = key.replace("self_attn.attn.", "self_attn.")
    key = key.replace("ffn.layers.0.0.", "linear1.").replace("ffn.layers.1.", "linear2.")
    # The authors number the norms of the decoder as they are defined, not as they are used.
    numbers = {"encoder": "12", "decoder": "213"}[key.split(".")[0]]
    renumbered = re.sub(r"norms\.(\d)", lambda match: f"norm{numbers[int(match[1])]}", key)
    return f"transformer.{renumbered}"


def hf_tensors(authors: dict[str, Tensor], version: int) -> dict[str, Tensor]:
    """The authors' tensors as transformers names them, query, key and value apart."""
    tensors = {}
    for key, value in authors.items():
        name = authors_to_hf(key, version)
        if "in_proj_" not in name:
            tensors[name] = value
            continue
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            tensors[re.sub(r"in_proj_(weight|bias)", rf"{letter}_proj.\1", name)] = part.clone()
    return tensors


def authors_to_hf(key: str, version: int) -> str:
    """The name in transformers 4.x (that of its files) or 5.x of one of the authors' tensors."""
    if key.startswith(("class_embed.", "bbox_embed.")):
        return key
    trunk = "backbone.conv_encoder.model." if version == 4 else "backbone.model."
    key = key.removeprefix("transformer.").replace("backbone.0.body.", trunk)
    key = key.replace("query_embed.", "query_position_embeddings.")
    is_encoder = key.startswith("encoder.")
    linear = "fc" if version == 4 else "mlp.fc"
    for old, new in (
        (".linear", f".{linear}"),
        (".cross_attn.", ".encoder_attn."),
        (".norm1.", ".self_attn_layer_norm." if is_encoder else ".encoder_attn_layer_norm."),
        (".norm2.", ".final_layer_norm." if is_encoder else ".self_attn_layer_norm."),
        (".norm3.", ".final_layer_norm."),
        (".self_attn.out_proj.", ".self_attn.out_proj." if version == 4 else ".self_attn.o_proj."),
    ):
        key = key.replace(old, new) if ".layers." in key else key
    return f"model.{key}"


if __name__ == "__main__":
    torch.save(checkpoint(sys.argv[1], sys.argv[2]), sys.argv[3])
