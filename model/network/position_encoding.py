"""Sine encodings of positions: of every pixel of a feature map, and of box coordinates."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def interleaved_sine(angles: Tensor, num_features: int, *, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of angles (...) at falling frequencies -> (..., num_features), float32.

    Feature 2j is sin(angle / T^(2j / n)), feature 2j + 1 the cosine of the same argument.
    """
    index = torch.arange(num_features // 2, dtype=torch.float32, device=angles.device)
    periods = temperature ** (2 * index / num_features)
    arguments = angles[..., None].float() / periods  # (..., n / 2)
    return torch.stack((arguments.sin(), arguments.cos()), dim=-1).flatten(-2)


def encode_pixels(y: Tensor, x: Tensor, *, hidden_dim: int) -> Tensor:
    """Position encoding of one feature level, y before x.

    Args:
        y, x: (B, H) and (B, W), the pixels' centres, normalised by the un-padded size. On padding
            they exceed 1, and the encoding is never read.
        hidden_dim: number of features, half for each axis.

    Returns:
        (B, H, W, hidden_dim) float32.

    Source: Carion et al., arXiv:2005.12872, appendix A.4, with pixel centres at half steps.
    """
    half = hidden_dim // 2
    rows, columns = (interleaved_sine(axis * (2 * math.pi), half) for axis in (y, x))
    # Rows and columns are encoded separately, each beside zeros, and added: H + W sines instead of
    # H * W, and a single pass over the map.
    return F.pad(rows, (0, half))[:, :, None] + F.pad(columns, (half, 0))[:, None]


def encode_boxes(boxes: Tensor, num_features: int) -> Tensor:
    """Encoding of normalised boxes (..., 4) cxcywh -> (..., 4 * num_features), cx first."""
    return interleaved_sine(boxes * (2 * math.pi), num_features).flatten(-2)
