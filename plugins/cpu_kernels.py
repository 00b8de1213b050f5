"""The native CPU kernels of multi-scale deformable attention, called through their C interface.

Tensors are as in `ms_deform_attn`: float32, float64, or bfloat16, in which case values are sampled
in bfloat16. Computes in float32, or in float64 for float64 values, on torch.get_num_threads()
threads; results do not depend on their number.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from plugins import library

INSTRUCTION_SETS = ("portable", "avx2", "avx512")  # in the order of detr::Isa
_STORAGES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}  # detr::ValueStorage


class Params(ctypes.Structure):
    """detr::MSDeformAttnParams."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("batch", "num_tokens", "num_queries", "num_heads")),
        *((name, ctypes.c_int) for name in ("head_dim", "num_levels", "num_points", "ref_dim")),
        *((name, ctypes.c_void_p) for name in ("value", "shapes", "reference", "offsets")),
        *((name, ctypes.c_void_p) for name in ("logits", "output")),
    ]

    @classmethod
    def of(
        cls,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor],
        shapes: ctypes.Array[ctypes.c_int32],
        *,
        output: Tensor | None,
    ) -> "Params":
        """Sizes and addresses of value, references, offsets and logits; all must outlive it."""
        value, reference, offsets, logits = tensors
        batch, num_tokens, num_heads, head_dim = value.shape
        num_queries, num_levels, num_points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
        return cls(
            *(batch, num_tokens, num_queries, num_heads, head_dim, num_levels, num_points),
            reference.shape[-1],
            value.data_ptr(),
            ctypes.addressof(shapes),
            *(tensor.data_ptr() for tensor in (reference, offsets, logits)),
            None if output is None else output.data_ptr(),
        )


def shapes_of(spatial_shapes: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    """The sides of levels, height, width, height, ..., as int32, which the kernels read."""
    return (ctypes.c_int32 * len(spatial_shapes))(*spatial_shapes)


class _Gradients(ctypes.Structure):
    """detr::MSDeformAttnGradients."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("output", "value", "reference")),
        *((name, ctypes.c_void_p) for name in ("offsets", "logits")),
    ]


def _load() -> ctypes.CDLL | None:
    path = library.find("libms_deform_attn.so")
    if path is None:
        return None
    loaded = ctypes.CDLL(str(path))
    loaded.detrLastError.restype = ctypes.c_char_p
    return loaded


_LIBRARY = _load()


def supports(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the kernels are built and support values on this device and of this type."""
    return _LIBRARY is not None and device_type == "cpu" and dtype in _STORAGES


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this CPU has and kernels are built for, the best last."""
    return INSTRUCTION_SETS[: 1 + _LIBRARY.detrBestIsa()] if _LIBRARY is not None else ()


def forward(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    kept_as: torch.dtype | None = None,
    instructions: str | None = None,
) -> Tensor:
    """The op, (B, Q, M * D); arguments as for `ms_deform_attn_operator`.

    Args:
        kept_as: type to round values to for sampling, if not their own: bfloat16 for float32.
        instructions: one of instruction_sets(); by default the best.

    Raises:
        ValueError: the kernels cannot run this call.
    """
    tensors = _computed(value, reference_points, sampling_offsets, attention_logits)
    batch, _, num_heads, head_dim = value.shape
    output = tensors[0].new_empty(batch, sampling_offsets.shape[1], num_heads * head_dim)
    shapes = shapes_of(spatial_shapes)
    params = Params.of(tensors, shapes, output=output)
    storage = _STORAGES[kept_as or value.dtype]
    _call("detrForward", params, storage=storage, instructions=instructions)
    return output.to(value.dtype)


def backward(
    gradient: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    with_reference_points: bool = True,
    instructions: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients, as `Kernels.backward` gives them; see `forward` for the other arguments."""
    inputs = (value, reference_points, sampling_offsets, attention_logits)
    tensors = _computed(*inputs)
    wide = tensors[0].dtype
    results = [torch.empty_like(tensor) for tensor in tensors]
    if not with_reference_points:
        results[1] = results[1].new_empty(0)
    out = gradient.to(wide).contiguous()
    shapes = shapes_of(spatial_shapes)
    params = Params.of(tensors, shapes, output=None)
    gradients = _Gradients(out.data_ptr(), *(result.data_ptr() or None for result in results))
    storage = _STORAGES[wide]
    _call("detrBackward", params, gradients, storage=storage, instructions=instructions)
    cast = [result.to(t.dtype) for result, t in zip(results, inputs, strict=True)]
    return cast[0], cast[1], cast[2], cast[3]


def _computed(value: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tensors, dense and in the type used for computing."""
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    reference, offsets, logits = (other.to(wide).contiguous() for other in others)
    return value.to(wide).contiguous(), reference, offsets, logits


def _call(name: str, *structures: ctypes.Structure, storage: int, instructions: str | None) -> None:
    assert _LIBRARY is not None
    best = _LIBRARY.detrBestIsa()
    isa = best if instructions is None else INSTRUCTION_SETS.index(instructions)
    arguments = (ctypes.byref(structure) for structure in structures)
    if getattr(_LIBRARY, name)(*arguments, storage, isa, torch.get_num_threads()) != 0:
        raise ValueError(_LIBRARY.detrLastError().decode())
