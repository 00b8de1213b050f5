"""The CUDA kernels of multi-scale deformable attention, called through their C interface.

Tensors are as in `ms_deform_attn`: float32, float16 or bfloat16. Locations, softmax and sums are
float32 whatever the type. Work goes to the current stream, waits for nothing, and may be captured
into a CUDA graph.
"""

import ctypes
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from plugins import library
from plugins.cpu_kernels import Params, shapes_of

logger = logging.getLogger(__name__)

OLDEST = (7, 5)  # compute capability; see GPUS in plugins/build.py
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # detr::DataType


class _Gradients(ctypes.Structure):
    """detr::MSDeformAttnCudaGradients."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("output", "value", "reference", "offsets", "logits", "fixed_point", "largest")
    ]


class CudaKernels:
    """The library's kernels, for tensors on one type of device."""

    def __init__(self, path: Path, *, device_type: str = "cuda") -> None:
        """Load the library; tests pass one whose kernels are emulated, with device type "cpu"."""
        self._library = ctypes.CDLL(str(path))
        for name in ("detrCudaRefusal", "detrCudaErrorText"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._device_type = device_type

    def supports(self, device_type: str, dtype: torch.dtype) -> bool:
        """Whether there are kernels for values on this device and of this type."""
        return device_type == self._device_type and dtype in _TYPES

    def why_unusable(self, compute_capability: tuple[int, int]) -> str | None:
        """Why this machine's driver, or a GPU of it, cannot run the kernels, if it cannot."""
        if compute_capability < OLDEST:
            of_gpu, oldest = (".".join(map(str, one)) for one in (compute_capability, OLDEST))
            return f"the GPU has compute capability {of_gpu}, and they need {oldest}"
        of_driver, needed = ctypes.c_int(), ctypes.c_int()
        versions = ctypes.byref(of_driver), ctypes.byref(needed)
        if error := self._library.detrCudaVersions(*versions):
            return self._text_of(error)
        if of_driver.value // 1000 >= needed.value // 1000:
            return None
        return (
            f"they were compiled with CUDA {_version(needed)}, and the driver supports CUDA "
            f"{_version(of_driver)}; update the driver, or run `make plugins` with the nvcc of "
            f"CUDA {of_driver.value // 1000}, named by NVCC"
        )

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
        self._call("detrCudaForward", spatial_shapes, tensors, output=output)
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
        sums = tensors[0].new_empty(value.shape, dtype=torch.float32)
        # One gradient for each head, since heads run in parallel.
        shape = (*sampling_offsets.shape[:4], reference_points.shape[-1])
        of_heads = sums.new_empty(shape if with_reference_points else 0)
        offsets, logits = (torch.empty_like(tensor) for tensor in tensors[2:])
        fixed_point, largest = None, None
        if torch.are_deterministic_algorithms_enabled():
            fixed_point = sums.new_empty(value.shape, dtype=torch.int64)
            largest = out.float().abs().amax() if out.numel() else sums.new_zeros(())
        results = (out, sums, of_heads, offsets, logits, fixed_point, largest)
        gradients = _Gradients(*(None if t is None else t.data_ptr() or None for t in results))
        self._call("detrCudaBackward", spatial_shapes, tensors, gradients=gradients)
        of_references = of_heads.sum(2) if with_reference_points else of_heads
        made = (sums, of_references, offsets, logits)
        cast = [result.to(t.dtype) for result, t in zip(made, inputs, strict=True)]
        return cast[0], cast[1], cast[2], cast[3]

    def _call(
        self,
        name: str,
        spatial_shapes: Sequence[int],
        tensors: tuple[Tensor, Tensor, Tensor, Tensor],
        *,
        output: Tensor | None = None,
        gradients: _Gradients | None = None,
    ) -> None:
        value = tensors[0]
        shapes = shapes_of(spatial_shapes)
        params = Params.of(tensors, shapes, output=output)
        refusal = self._library.detrCudaRefusal(ctypes.byref(params))
        if refusal is not None:
            raise ValueError(f"the CUDA kernels cannot run {refusal.decode()}")
        on_device = value.new_empty(len(spatial_shapes), dtype=torch.int32)
        results = () if gradients is None else (ctypes.byref(gradients),)
        stream = None
        with torch.cuda.device(value.device) if value.is_cuda else nullcontext():
            if value.is_cuda:
                stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            error = getattr(self._library, name)(
                ctypes.byref(params),
                *results,
                ctypes.c_void_p(on_device.data_ptr()),
                _TYPES[value.dtype],
                stream,
            )
        if error != 0:
            raise RuntimeError(f"{name} failed with CUDA's {self._text_of(error)}")

    def _text_of(self, error: int) -> str:
        return f"error {error}, {self._library.detrCudaErrorText(error).decode()}"


def _version(number: ctypes.c_int) -> str:
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def dense_inputs(value: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tensors, dense and of the types that kernels of a GPU take.

    References are float32, all others of one type: that of value, or float32 if they differ, so
    that nothing loses digits.
    """
    reference, offsets, logits = others
    common = value.dtype if value.dtype == offsets.dtype == logits.dtype else torch.float32
    value, offsets, logits = (t.to(common).contiguous() for t in (value, offsets, logits))
    return value, reference.to(torch.float32).contiguous(), offsets, logits


@cache
def cuda_kernels() -> CudaKernels | None:
    """The kernels, if they are built and this is a machine with a GPU that PyTorch can use.

    If only the driver or the GPU is too old for them, the log says so.
    """
    path = library.find(library.CUDA_KERNELS)
    if path is None or not torch.cuda.is_available():
        return None
    kernels = CudaKernels(path)
    if why := kernels.why_unusable(torch.cuda.get_device_capability()):
        logger.warning("multi-scale deformable attention: no native kernels: %s", why)
        return None
    return kernels
