"""Layers whose intermediate results are recomputed in the backward pass instead of being kept."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, *inputs: Any, recomputes: bool) -> Tensor:
    """Run a layer; if it recomputes, only its inputs are kept for the backward pass.

    Gradients are the same, also with dropout. Without gradients it makes no difference.

    Source: Chen et al., arXiv:1604.06174.
    """
    if recomputes and torch.is_grad_enabled():
        output: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
    else:
        output = layer(*inputs)
    return output
