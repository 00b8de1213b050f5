"""Multi-scale deformable attention in plain PyTorch: the reference for every other backend."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sampling_locations(
    spatial_shapes: Sequence[tuple[int, int]], reference_points: Tensor, sampling_offsets: Tensor
) -> Tensor:
    """Where to sample each level, normalised to [0, 1] over the padded map.

    Args and shapes as in `ms_deform_attn`; the result is (B, Q, M, L, P, 2) in the
    dtype of reference_points.
    """
    offsets = sampling_offsets.to(reference_points.dtype)
    points = reference_points[:, :, None, :, None, :]  # (B, Q, 1, L, 1, 2 or 4)
    if reference_points.shape[-1] == 4:
        num_points = sampling_offsets.shape[-2]
        return points[..., :2] + offsets / num_points * points[..., 2:] * 0.5
    scaled = [
        torch.stack((offsets[:, :, :, level, :, 0] / w, offsets[:, :, :, level, :, 1] / h), dim=-1)
        for level, (h, w) in enumerate(spatial_shapes)
    ]
    return points + torch.stack(scaled, dim=3)


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Weighted sum of sampled values; see `ms_deform_attn` for shapes and source.

    Samples and sums in the dtype of reference_points, which is float32 or wider: in half precision
    locations would move in steps of many hundredths of a pixel, and PyTorch's grid_sample on a CPU
    returns NaN for finite values.
    """
    wide = torch.promote_types(value.dtype, reference_points.dtype)
    batch, _, num_heads, head_dim = value.shape
    num_queries, num_points = sampling_offsets.shape[1], sampling_offsets.shape[4]
    locations = sampling_locations(spatial_shapes, reference_points, sampling_offsets)
    grids = (2 * locations - 1).to(wide)
    grids = grids.permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B * M, Q, P, 2)
    weights = attention_logits.to(wide).flatten(-2).softmax(-1).unflatten(-1, (-1, num_points))
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)  # (L, B * M, Q, P)
    levels = value.to(wide).split([h * w for h, w in spatial_shapes], dim=1)
    total = grids.new_zeros(())
    for level, (h, w) in enumerate(spatial_shapes):
        maps = levels[level].permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, h, w)
        sampled = F.grid_sample(maps, grids[level], align_corners=False)  # (B * M, D, Q, P)
        total = total + (sampled * weights[level][:, None]).sum(-1)  # (B * M, D, Q)
    return total.reshape(batch, num_heads * head_dim, num_queries).transpose(1, 2).to(value.dtype)
