"""Which kernels compute multi-scale deformable attention in the models of this process."""

from functools import partial
from types import ModuleType
from typing import Literal

from model.network import attention
from model.network.ops import registration
from model.network.ops.ms_deform_attn import ms_deform_attn
from plugins import cpu_kernels
from plugins.cuda_kernels import cuda_kernels
from plugins.gpu_kernels import gpu_kernels
from plugins.triton_kernels import triton_kernels

Kind = Literal["ours", "triton", "reference"]


def use_kernels(kind: Kind, device: str) -> None:
    """Let models use these from now on: the best that there are, those in Triton, or none.

    Raises:
        ValueError: there are none on this machine.
    """
    if kind == "reference":
        _replace(attention, "ms_deform_attn", partial(ms_deform_attn, backend="reference"))
    elif kind == "triton":
        found = find_kernels("triton", device)
        _replace(registration, "gpu_kernels", lambda: found)
    elif device == "cuda" and gpu_kernels() is None:
        raise ValueError("no kernels: run `make plugins`, which needs nvcc, or install triton")


def find_kernels(kind: Literal["native", "triton"], device: str) -> registration.Kernels:
    """The kernels of a kind, for tensors on a device.

    Raises:
        ValueError: there are none on this machine.
    """
    kernels: registration.Kernels | None
    if device == "cpu":
        kernels = cpu_kernels if kind == "native" and cpu_kernels.instruction_sets() else None
    else:
        kernels = cuda_kernels() if kind == "native" else triton_kernels()
    if kernels is None:
        raise ValueError(f"no {kind} kernels on this machine")
    return kernels


def _replace(module: ModuleType, name: str, value: object) -> None:
    setattr(module, name, value)
