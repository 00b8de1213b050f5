"""The operators of our ONNX graphs as functions of torch: a row of `OPERATORS` for each.

A function takes a node's inputs in order, None for one that is left out, and its attributes by
name. Inputs that are sizes, axes or indices come as lists of integers: see `SIZES`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.layout import OPERATOR
from plugins import cpu_kernels
from plugins.gpu_kernels import gpu_kernels

Ints = Sequence[int]

# ONNX's numbers of the types that our graphs cast to.
DTYPES: Mapping[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    16: torch.bfloat16,
}

# Which inputs an operator needs as integers on the host.
SIZES: Mapping[str, tuple[int, ...]] = {
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    OPERATOR: (1,),
}


def _attend(
    value: Tensor,
    spatial_shapes: Ints,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Multi-scale deformable attention; see the README of the operator.

    Raises:
        ValueError: there are no kernels for this device.
    """
    call = (value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    if value.is_cuda:
        on_gpu = gpu_kernels()
        if on_gpu is None:
            raise ValueError("no kernels for a GPU: run `make plugins`, which needs nvcc")
        return on_gpu.forward(*call)
    # The CPU's kernels have no float16, and sample what they read in float32.
    return cpu_kernels.forward(*call, kept_as=torch.float32)


def _slice(
    x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None
) -> Tensor:
    index = [slice(None)] * x.ndim
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[axis] if side == 0 and not allowzero else side
                      for axis, side in enumerate(shape)])  # fmt: skip


def _expand(x: Tensor, shape: Ints) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


def _squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    num_axes = x.ndim + len(axes)
    for axis in sorted(axis % num_axes for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(
    x: Tensor, sizes: Ints | None = None, *, axis: int = 0, num_outputs: int = 0
) -> tuple[Tensor, ...]:
    return torch.split(x, list(sizes) if sizes else -(-x.shape[axis] // num_outputs), axis)


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def _gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    picked = x.index_select(axis, torch.where(index < 0, index + x.shape[axis], index).flatten())
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _pad(x: Tensor, pads: Ints, *unused: Any, mode: str = "constant") -> Tensor:
    if mode != "constant" or any(argument is not None for argument in unused):
        raise NotImplementedError("Pad with anything but zeros on every axis")
    ends = [side for axis in reversed(range(x.ndim)) for side in (pads[axis], pads[axis + x.ndim])]
    return F.pad(x, ends)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pads: Ints,
    strides: Ints,
    dilations: Ints,
    group: int = 1,
    **_: Any,
) -> Tensor:
    half = _symmetric(pads)
    return F.conv2d(x, weight, bias, tuple(strides), half, tuple(dilations), group)


def _max_pool(x: Tensor, *, kernel_shape: Ints, pads: Ints, strides: Ints, **_: Any) -> Tensor:
    return F.max_pool2d(x, tuple(kernel_shape), tuple(strides), _symmetric(pads))


def _symmetric(pads: Ints) -> tuple[int, ...]:
    half = len(pads) // 2
    if tuple(pads[:half]) != tuple(pads[half:]):
        raise NotImplementedError(f"pads {list(pads)}, which differ between the sides")
    return tuple(pads[:half])


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - the names are ONNX's
    transB: int = 0,  # noqa: N803
) -> Tensor:
    a, b = a.T if transA else a, b.T if transB else b
    return alpha * (a @ b) if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """The quotient, which ONNX truncates if it is one of integers."""
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _reduce_sum(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    if not axes and noop_with_empty_axes:
        return x
    return x.sum(None if not axes else tuple(axes), keepdim=bool(keepdims))


def _top_k(
    x: Tensor, k: Ints, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    values, indices = x.topk(k[0], axis, bool(largest), bool(sorted))
    return values, indices


def _cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    return x.to(DTYPES[to])


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, low, high)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _conv,
    "Cos": torch.cos,
    "Div": _divide,
    "Equal": torch.eq,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": lambda x, index, *, axis=0: x.gather(axis, index),
    "Gemm": _gemm,
    "Greater": torch.gt,
    "Identity": lambda x: x,
    "LayerNormalization": _layer_norm,
    "Less": torch.lt,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "MaxPool": _max_pool,
    "Mod": lambda x, y, *, fmod=0: torch.fmod(x, y) if fmod else torch.remainder(x, y),
    "Mul": torch.mul,
    "Not": torch.logical_not,
    "Pad": _pad,
    "Pow": torch.pow,
    "Range": lambda start, limit, step: torch.arange(start[0], limit[0], step[0]),
    "Reciprocal": torch.reciprocal,
    "ReduceSum": _reduce_sum,
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Slice": _slice,
    "Softmax": lambda x, *, axis=-1: torch.softmax(x, axis),
    "Split": _split,
    "Sqrt": torch.sqrt,
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "TopK": _top_k,
    "Transpose": lambda x, *, perm: x.permute(tuple(perm)),
    "Unsqueeze": _unsqueeze,
    "Where": torch.where,
    OPERATOR: _attend,
}


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor with the numbers of an array, which may be of bfloat16 as ml_dtypes has it."""
    copied = np.array(array)
    if copied.dtype.name == "bfloat16":
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)
