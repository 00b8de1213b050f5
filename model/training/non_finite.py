"""Finds where the first NaN or infinity of a training step comes from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteLoss(ValueError):
    """Training cannot continue; the message names step, images and the first bad tensor."""


def first_bad_tensor(model: nn.Module, forward: Callable[[], dict[str, Tensor]]) -> str | None:
    """Run `forward` again and describe the first tensor that is not finite, if any.

    Checks, in this order, weights and buffers, module outputs as they are computed, loss terms
    and gradients.

    Args:
        forward: computes the loss terms by running `model` on the batch.
    """
    for name, tensor in model.state_dict().items():
        if not _is_finite(tensor):
            return f"weight {name} {_describe(tensor)}"
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if found:
                return
            for kind, value in (("input", inputs), ("output", output)):
                for tensor in _tensors(value):
                    if not _is_finite(tensor):
                        found.append(
                            f"{kind} of {name or 'the detector'} ({type(module).__name__}) "
                            f"{_describe(tensor)}"
                        )
                        return

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in model.named_modules()]
    try:
        losses = forward()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    for name, term in losses.items():
        if not _is_finite(term):
            return f"loss term {name} ({term.item()})"
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in reversed(list(model.named_parameters())):  # nearest the loss first
        if parameter.grad is not None and not _is_finite(parameter.grad):
            return f"gradient of {name} {_describe(parameter.grad)}"
    return None


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _describe(tensor: Tensor) -> str:
    num_bad = int((~torch.isfinite(tensor)).sum())
    return f"{tuple(tensor.shape)}: values that are not finite: {num_bad} of {tensor.numel()}"


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
