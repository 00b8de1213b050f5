"""Deterministic synthetic weights for the parity fixtures (numpy only).

A fixture need not ship its checkpoint: every tensor is a pure function of (seed, canonical key,
shape). The streams of np.random.RandomState are frozen by numpy's policy, so the values are the
same on any numpy.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

HEADS, LEVELS, POINTS = 8, 4, 4


def synth_state_dict(
    shapes: Mapping[str, Sequence[int]], seed: int, canonical: Callable[[str], str]
) -> dict[str, np.ndarray]:
    """All tensors by key; `canonical` gives the name that seeds a key's values."""
    return {key: synth_tensor(canonical(key), shape, seed) for key, shape in shapes.items()}


def synth_tensor(key: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """One tensor, float32 (int64 for num_batches_tracked), scaled as its kind would be."""
    shape = tuple(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    random = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()) & 0x7FFFFFFF)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        values = 0.5 + random.random_sample(shape)
    else:
        values = _scaled(key, leaf, shape, random.standard_normal(shape))
    return np.ascontiguousarray(values, dtype=np.float32)


def _scaled(key: str, leaf: str, shape: tuple[int, ...], normal: np.ndarray) -> np.ndarray:
    if leaf == "running_mean":
        return 0.1 * normal
    if "sampling_offsets" in key:
        return 0.04 * normal if leaf == "weight" else _grid_bias() + 0.5 * normal
    if "attention_weights" in key:
        return (0.06 if leaf == "weight" else 0.3) * normal
    if len(shape) == 4:
        return normal * np.sqrt(2.0 / (shape[1] * shape[2] * shape[3]))
    if "level_embed" in key or ("query" in key and len(shape) == 2):
        return normal
    if leaf in ("weight", "in_proj_weight") and len(shape) == 2:
        values = normal / np.sqrt(shape[1])
        return 0.7 * values if shape[0] == 4 else values  # 4: the last layer of a box head
    if leaf == "weight":  # gain of a norm
        values = 1.0 + 0.1 * normal
        return 0.3 * values if key.endswith("bn3.weight") else values
    values = 0.1 * normal
    if "cls_branches" in key:
        return 5.0 * values - 2.0
    if shape == (4,):  # last bias of a box head: smallish boxes
        return values + np.array([0.0, 0.0, -1.2, -1.2])
    return values


def _grid_bias() -> np.ndarray:
    angles = np.arange(HEADS, dtype=np.float64) * (2.0 * np.pi / HEADS)
    directions = np.stack([np.cos(angles), np.sin(angles)], -1)
    directions = directions / np.abs(directions).max(-1, keepdims=True)
    grid = directions[:, None, None, :] * np.arange(1, POINTS + 1)[None, None, :, None]
    return np.broadcast_to(grid, (HEADS, LEVELS, POINTS, 2)).reshape(-1)


def canonical_mmdet(variant: str) -> Callable[[str], str]:
    """The mmdet 3.x name of a key of either mmdet; base's copies of the heads share one name."""

    def canonical(key: str) -> str:
        key = mmdet2_to_mmdet3(key)
        if variant == "base":
            key = re.sub(r"^bbox_head\.(cls|reg)_branches\.\d+\.", r"bbox_head.\1_branches.0.", key)
        return key

    return canonical


def mmdet2_to_mmdet3(key: str) -> str:
    """The name mmdet 3.x gives to a tensor of mmdet 2.x; names of 3.x pass unchanged."""
    transformer = "bbox_head.transformer."
    if key.startswith("bbox_head.query_embedding."):
        return key.removeprefix("bbox_head.")
    if not key.startswith(transformer):
        return key
    key = key.removeprefix(transformer)
    for old, new in (
        ("level_embeds", "level_embed"),
        ("enc_output_norm.", "memory_trans_norm."),
        ("enc_output.", "memory_trans_fc."),
        ("pos_trans.", "pos_trans_fc."),
        ("reference_points.", "reference_points_fc."),
    ):
        if key.startswith(old):
            return new + key[len(old) :]
    key = re.sub(r"^((en|de)coder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn.", key)
    key = re.sub(r"^(decoder\.layers\.\d+)\.attentions\.1\.", r"\1.cross_attn.", key)
    return key.replace(".ffns.0.", ".ffn.")
