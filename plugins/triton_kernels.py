"""The kernels of multi-scale deformable attention in Triton, called with PyTorch's tensors.

For a GPU whose CUDA kernels are not built. Tensors are as in `ms_deform_attn`: float32, float16 or
bfloat16. Needs the package triton and, at the first launch, a C compiler.
"""

import logging
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from plugins.cuda_kernels import dense_inputs

logger = logging.getLogger(__name__)

_OLDEST = (7, 0)  # compute capability that Triton compiles for, as torch.compile assumes
_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST_BLOCK = 2**17
_LARGEST_IMAGE = 2**31


class TritonKernels:
    """The kernels, for tensors on one type of device."""

    def __init__(
        self, kernels: ModuleType, *, device_type: str = "cuda", block: int = 2048
    ) -> None:
        """Tests pass kernels that are interpreted, with device type "cpu".

        `block`: how many numbers a program holds of the queries' samples at a corner, if there
        are as many; 2048 for 128 threads is an estimate that no GPU has confirmed.
        """
        self._kernels = kernels
        self._device_type = device_type
        self._block = block

    def supports(self, device_type: str, dtype: torch.dtype) -> bool:
        """Whether there are kernels for values on this device and of this type."""
        return device_type == self._device_type and dtype in _TYPES

    def forward(
        self,
        value: Tensor,
        spatial_shapes: Sequence[int],
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        """The op, (B, Q, M * D); arguments as for `ms_deform_attn_operator`.

        Raises:
            ValueError: the kernels cannot run this call.
        """
        tensors = dense_inputs(value, reference_points, sampling_offsets, attention_logits)
        batch, _, num_heads, head_dim = value.shape
        output = tensors[0].new_empty(batch, sampling_offsets.shape[1], num_heads * head_dim)
        self._launch(self._kernels.forward_kernel, tensors, spatial_shapes, results=(output,))
        return output.to(value.dtype)

    def backward(
        self,
        gradient: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[int],
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
        *,
        with_reference_points: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients, as `Kernels.backward` gives them.

        Gradients of values are added in an order that varies from run to run, unless
        `torch.use_deterministic_algorithms` asks for one that does not, which is slower.
        """
        inputs = (value, reference_points, sampling_offsets, attention_logits)
        tensors = dense_inputs(*inputs)
        out = gradient.to(tensors[0].dtype).contiguous()
        sums = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        # One gradient for each head, since heads run in parallel.
        shape = (*sampling_offsets.shape[:4], reference_points.shape[-1])
        of_heads = sums.new_empty(shape if with_reference_points else 0)
        offsets, logits = (torch.empty_like(tensor) for tensor in tensors[2:])
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        whole = torch.zeros_like(sums, dtype=torch.int64) if is_deterministic else None
        scale = _fixed_point_scale(out, offsets.shape[1]) if is_deterministic else None
        self._launch(
            self._kernels.backward_kernel,
            tensors,
            spatial_shapes,
            results=(out, sums, whole, scale, of_heads, offsets, logits),
            IS_DETERMINISTIC=is_deterministic,
            WITH_REFERENCE=with_reference_points,
        )
        if whole is not None and scale is not None:
            sums += whole / scale
        of_references = of_heads.sum(2) if with_reference_points else of_heads
        made = (sums, of_references, offsets, logits)
        cast = [result.to(t.dtype) for result, t in zip(made, inputs, strict=True)]
        return cast[0], cast[1], cast[2], cast[3]

    def _launch(
        self,
        kernel: Any,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor],
        spatial_shapes: Sequence[int],
        *,
        results: tuple[Tensor | None, ...],
        **options: bool,
    ) -> None:
        """Run a kernel on the inputs' device, in its current stream."""
        value, reference, offsets, _ = tensors
        _check(tensors, spatial_shapes)
        batch, num_tokens, num_heads, head_dim = value.shape
        num_queries, num_levels, num_points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
        if batch * num_queries == 0:
            return
        samples, channels = _power_of_two(num_levels * num_points), _power_of_two(head_dim)
        queries = min(max(1, self._block // (samples * channels)), _power_of_two(num_queries))
        blocks = -(-num_queries // queries)
        with torch.cuda.device(value.device) if value.is_cuda else nullcontext():
            kernel[(batch * blocks * num_heads,)](
                *tensors,
                *results,
                tuple(map(float, spatial_shapes)),
                num_tokens,
                num_queries,
                NUM_HEADS=num_heads,
                HEAD_DIM=head_dim,
                NUM_LEVELS=num_levels,
                NUM_POINTS=num_points,
                REFERENCE_DIM=reference.shape[-1],
                SCALE=0.5 / num_points if reference.shape[-1] == 4 else 0.0,
                BLOCK_Q=queries,
                BLOCK_S=samples,
                BLOCK_D=channels,
                num_warps=min(16, max(4, queries * samples * channels // 512)),
                enable_fp_fusion=True,  # as nvcc does
                **options,
            )


def _check(tensors: tuple[Tensor, Tensor, Tensor, Tensor], spatial_shapes: Sequence[int]) -> None:
    value, _, offsets, _ = tensors
    _, num_tokens, num_heads, head_dim = value.shape
    pixels = [h * w for h, w in zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True)]
    block = _power_of_two(offsets.shape[3] * offsets.shape[4]) * _power_of_two(head_dim)
    refusals = {
        "a level without a pixel": min(spatial_shapes) < 1,
        "levels that do not add up to the tokens": sum(pixels) != num_tokens,
        f"{_LARGEST_IMAGE} values or more in an image": (
            num_tokens * num_heads * head_dim >= _LARGEST_IMAGE
        ),
        f"samples times channels of a head beyond {_LARGEST_BLOCK}": block > _LARGEST_BLOCK,
    }
    for refusal, applies in refusals.items():
        if applies:
            raise ValueError(f"the Triton kernels cannot run {refusal}")


def _power_of_two(number: int) -> int:
    """The least one that is not smaller."""
    return 1 << (number - 1).bit_length()


def _fixed_point_scale(gradient: Tensor, num_queries: int) -> Tensor:
    """The factor from floats to whole numbers whose sum over all queries fits into 63 bits.

    A power of two; NaN if a number in the output's gradient is not finite. The weights of a query
    in a head add up to one, so it adds no more than its largest gradient to any element.
    """
    largest = gradient.float().abs().amax() if gradient.numel() else gradient.new_zeros(()).float()
    exponent = torch.frexp(largest).exponent
    bits = 61 - num_queries.bit_length() - exponent
    scale = torch.exp2(bits.clamp(max=126).double()).float()
    return torch.where(largest.isfinite(), scale, torch.nan)


@cache
def triton_kernels() -> TritonKernels | None:
    """The kernels, if Triton is installed and can launch on this machine's GPU."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < _OLDEST:
        return None
    try:
        import triton

        from plugins import triton_source

        triton.runtime.driver.active.get_current_target()  # compiles its launcher with a C compiler
    except (
        *(ImportError, RuntimeError, OSError, subprocess.CalledProcessError),
        AssertionError,  # where it does not find the driver's library
    ) as error:
        logger.info("multi-scale deformable attention: no Triton kernels: %s", error)
        return None
    return TritonKernels(triton_source)
