"""The Python interface of multi-scale deformable attention: checks, then picks a backend."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from model.network.ops.reference import ms_deform_attn_reference
from model.network.ops.registration import has_kernels, ms_deform_attn_operator, say_once


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of values sampled at a few points on every feature level.

    Args:
        value: (B, S, M, D), any float dtype. Padded positions must already be zero.
        spatial_shapes: (height, width) of each of the L levels, in the order of S. Integers rather
            than a tensor, to avoid waiting for a device.
        reference_points: (B, Q, L, 2 or 4), float32 or wider, normalised (cx, cy[, w, h]).
        sampling_offsets: (B, Q, M, L, P, 2), (x, y) in pixels of the level, or in
            half box sizes over P where reference points carry a box.
        attention_logits: (B, Q, M, L, P), before the softmax over (L, P).
        backend: "reference" (plain PyTorch), "operator" (the opaque op `detr::ms_deform_attn`:
            one node in an exported graph, and the kernels for the device if there are any),
            "native" (the same, refused if there are none) or "auto": the operator while a graph
            is being exported and if there are kernels, else the reference. On a GPU without the
            native kernels, those in Triton run.

    Returns:
        (B, Q, M * D), dtype of value. Points outside a level read as zero.

    Raises:
        ValueError: shapes disagree, or the backend is not available here.

    Source: Deformable DETR, arXiv:2010.04159, eq. (3). Pixel centres are at (i + 0.5) / size.
    """
    _check(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    tensors = (reference_points, sampling_offsets, attention_logits)
    if backend == "auto":
        backend = "operator" if _is_operator_better(value) else "reference"
    if backend == "native" and not has_kernels(value.device.type, value.dtype):
        raise ValueError(
            f"no kernels for {value.dtype} on {value.device.type}; `make plugins` builds "
            "those for float32, float64 and bfloat16 on a CPU, which needs a C++ compiler, and "
            "for float32, float16 and bfloat16 on a GPU, which needs nvcc, or else the package "
            "triton and a C compiler"
        )
    if backend == "reference":
        return ms_deform_attn_reference(value, spatial_shapes, *tensors)
    if backend in ("operator", "native"):
        flat = [side for shape in spatial_shapes for side in shape]
        output: Tensor = ms_deform_attn_operator(value, flat, *tensors)
        return output
    raise ValueError(f"unknown backend {backend!r}; known are: auto, reference, operator, native")


def _is_operator_better(value: Tensor) -> bool:
    if torch.compiler.is_exporting() or has_kernels(value.device.type, value.dtype):
        return True
    if not torch.compiler.is_compiling():
        is_on_cpu = value.device.type == "cpu"
        needed = "a C++ compiler" if is_on_cpu else "nvcc, or install triton and a C compiler"
        message = f"plain PyTorch, which is slow; to speed it up, run `make plugins` with {needed}"
        say_once(logging.WARNING, message)
    return False


def _check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> None:
    if value.ndim != 4 or sampling_offsets.ndim != 6 or sampling_offsets.shape[-1] != 2:
        raise ValueError(
            "expected value (B, S, M, D) and sampling_offsets (B, Q, M, L, P, 2), got "
            f"{tuple(value.shape)} and {tuple(sampling_offsets.shape)}"
        )
    num_levels = sampling_offsets.shape[3]
    if len(spatial_shapes) != num_levels:
        raise ValueError(f"expected {num_levels} spatial_shapes, got {len(spatial_shapes)}")
    if sampling_offsets.shape[:-1] != attention_logits.shape:
        raise ValueError(
            f"expected attention_logits {tuple(sampling_offsets.shape[:-1])}, "
            f"got {tuple(attention_logits.shape)}"
        )
    batch, num_queries, num_heads = sampling_offsets.shape[:3]
    if reference_points.shape[:-1] != (batch, num_queries, num_levels) or (
        reference_points.shape[-1] not in (2, 4)
    ):
        raise ValueError(
            f"expected reference_points ({batch}, {num_queries}, {num_levels}, 2 or 4), "
            f"got {tuple(reference_points.shape)}"
        )
    if value.shape[0] != batch or value.shape[2] != num_heads:
        raise ValueError(
            f"expected value with B = {batch} and M = {num_heads}, got {tuple(value.shape)}"
        )
    num_tokens = sum(h * w for h, w in spatial_shapes)
    torch._check(value.shape[1] == num_tokens, lambda: "spatial_shapes do not add up to S of value")
