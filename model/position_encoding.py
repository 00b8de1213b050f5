"""Sine encodings of positions: of every pixel of a feature map, and of box coordinates."""

import math

import torch
from torch import Tensor


def interleaved_sine(angles: Tensor, num_features: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of angles (...) at falling frequencies -> (..., num_features), float32.

    Feature 2j is sin(angle / T^(2j / n)), feature 2j + 1 the cosine of the same argument.
    """
    index = torch.arange(num_features // 2, dtype=torch.float32, device=angles.device)
    periods = temperature ** (2 * index / num_features)
    arguments = angles[..., None].float() / periods  # (..., n / 2)
    return torch.stack((arguments.sin(), arguments.cos()), dim=-1).flatten(-2)


def encode_pixels(padding_mask: Tensor, hidden_dim: int) -> Tensor:
    """Position encoding of one feature level, y before x.

    Positions count valid pixels from the top-left corner and are scaled to (0, 2 pi) over the
    valid part of the map; at padding they mean nothing and are never read.

    Args:
        padding_mask: (B, H, W) bool, True on padding.
        hidden_dim: number of features, half for each axis.

    Returns:
        (B, H, W, hidden_dim) float32.

    Source: Carion et al., arXiv:2005.12872, appendix A.4, with pixel centres at half steps.
    """
    valid = (~padding_mask).float()
    y = valid.cumsum(1)
    x = valid.cumsum(2)
    y = (y - 0.5) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = (x - 0.5) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    half = hidden_dim // 2
    return torch.cat((interleaved_sine(y, half), interleaved_sine(x, half)), dim=-1)


def encode_boxes(boxes: Tensor, num_features: int) -> Tensor:
    """Encoding of normalised boxes (..., 4) cxcywh -> (..., 4 * num_features), cx first."""
    return interleaved_sine(boxes * (2 * math.pi), num_features).flatten(-2)
