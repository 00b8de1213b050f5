"""The arithmetic of a training step: number formats, loss scaling, and a compiled backbone."""

import torch

from model.config import TrainConfig
from model.network.deformable_detr import DeformableDetr


def forward_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The type of the forward pass: what the configuration asks for, or float32.

    bfloat16 needs a device that computes in it, float16 a GPU.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    if config.precision == "bf16" and has_bf16:
        return torch.bfloat16
    if config.precision == "fp16" and device.type == "cuda":
        return torch.float16
    return torch.float32


def loss_scaler(dtype: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that gradients do not vanish in float16; does nothing in other types."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def set_tf32(allowed: bool) -> None:
    """Let all convolutions and matrix products of this process use TF32 on a GPU, or none."""
    # The newer `fp32_precision` of each operation would leave flags that torch.export, which reads
    # these two, refuses as contradictory.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def compile_backbone(model: DeformableDetr, *, backend: str = "inductor") -> None:
    """Compile the backbone at its first run, for images of every size; parameters keep their names.

    Args:
        backend: of torch.compile.
    """
    model.backbone.compile(dynamic=True, backend=backend)
