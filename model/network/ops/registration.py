"""`detr::ms_deform_attn` as one opaque operator of torch, with its gradient.

Runs the kernels of the device if there are any that support the values, else the reference;
gradients require kernels. On a GPU, native ones come before those in Triton.
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from model.network.ops.reference import ms_deform_attn_reference
from plugins import cpu_kernels
from plugins.cuda_kernels import CudaKernels
from plugins.gpu_kernels import describe, gpu_kernels
from plugins.triton_kernels import TritonKernels

logger = logging.getLogger(__name__)


@cache
def say_once(level: int, message: str) -> None:
    """Log which backend was picked, once."""
    logger.log(level, "multi-scale deformable attention: %s", message)


class Kernels(Protocol):
    """Computes the operator and its gradients on a kind of device."""

    def forward(
        self,
        value: Tensor,
        spatial_shapes: Sequence[int],
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        """The op, (B, Q, M * D); arguments as for `ms_deform_attn_operator`."""
        ...

    def backward(
        self,
        gradient: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[int],
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
        *,
        with_reference_points: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of value, reference points (empty if not wanted), offsets and logits.

        Each has the shape and type of its tensor; `gradient`, of the output, is (B, Q, M * D).
        """
        ...


def kernels_for(device_type: str, dtype: torch.dtype) -> Kernels | None:
    """The best kernels for values on this kind of device and of this type, if there are any."""
    if device_type == "cuda":
        on_gpu = gpu_kernels()
        return on_gpu if on_gpu is not None and on_gpu.supports(device_type, dtype) else None
    return cpu_kernels if cpu_kernels.supports(device_type, dtype) else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_kernels(device_type: str, dtype: torch.dtype) -> bool:
    """Whether there are any; torch.compile, which cannot trace how they are found, is told this."""
    return kernels_for(device_type, dtype) is not None


def _name_of(kernels: Kernels) -> str:
    if isinstance(kernels, CudaKernels | TritonKernels):
        return describe(kernels)
    return f"native kernels, {cpu_kernels.instruction_sets()[-1]}"


@torch.library.custom_op("detr::ms_deform_attn", mutates_args=())
def ms_deform_attn_operator(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` as a torch operator, with its shapes and types.

    Args:
        spatial_shapes: flat: height, width, height, ...
    """
    tensors = (reference_points, sampling_offsets, attention_logits)
    kernels = kernels_for(value.device.type, value.dtype)
    if kernels is not None:
        say_once(logging.INFO, _name_of(kernels))
        return kernels.forward(value, spatial_shapes, *tensors)
    shapes = list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))
    return ms_deform_attn_reference(value, shapes, *tensors).contiguous()


@ms_deform_attn_operator.register_fake
def _shape_of_output(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    batch, _, num_heads, head_dim = value.shape
    return value.new_empty(batch, sampling_offsets.shape[1], num_heads * head_dim)


@torch.library.custom_op("detr::ms_deform_attn_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    with_reference_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels = kernels_for(value.device.type, value.dtype)
    if kernels is None:
        raise RuntimeError(
            f"no kernels for gradients of {value.dtype} on {value.device.type}; "
            'run `make plugins`, or use backend="reference"'
        )
    return kernels.backward(
        gradient,
        value,
        spatial_shapes,
        reference_points,
        sampling_offsets,
        attention_logits,
        with_reference_points=with_reference_points,
    )


@_backward.register_fake
def _shapes_of_gradients(
    gradient: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    with_reference_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (value, reference_points, sampling_offsets, attention_logits)
    dense = [tensor.new_empty(tensor.shape) for tensor in inputs]
    if not with_reference_points:
        dense[1] = reference_points.new_empty(0)
    return dense[0], dense[1], dense[2], dense[3]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, *tensors = inputs
    ctx.save_for_backward(value, *tensors)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, *tensors = ctx.saved_tensors
    with_reference_points = ctx.needs_input_grad[2]
    value_gradient, reference_gradient, *others = torch.ops.detr.ms_deform_attn_backward(
        gradient, value, ctx.spatial_shapes, *tensors, with_reference_points
    )
    return (value_gradient, None, reference_gradient if with_reference_points else None, *others)


def _refuse(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    raise RuntimeError('ms_deform_attn has no second derivative here; backend="reference" has one')


def _under_autocast(value: Tensor, spatial_shapes: Sequence[int], *tensors: Tensor) -> Tensor:
    """Takes float32 values in the type of autocast, if kernels have it; others as they are.

    Locations and weights stay as they are, too: kernels compute them in float32.
    """
    device_type = value.device.type
    dtype = torch.get_autocast_dtype(device_type)
    if value.dtype == torch.float32 and has_kernels(device_type, dtype):
        value = value.to(dtype)
    with torch.autocast(device_type, enabled=False):
        output: Tensor = ms_deform_attn_operator(value, spatial_shapes, *tensors)
    return output


_rules = torch.library.Library("detr", "FRAGMENT")  # they last as long as it does
for _key in ("AutocastCPU", "AutocastCUDA"):
    _rules.impl("ms_deform_attn", _under_autocast, _key)
torch.library.register_autograd("detr::ms_deform_attn", _gradients, setup_context=_save)
torch.library.register_autograd("detr::ms_deform_attn_backward", _refuse)
