"""The feature levels of a batch, flattened: what every part of the transformer needs of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pyramid:
    """Geometry of the flattened feature levels; S is the sum of H_l * W_l over the L levels.

    Attributes:
        spatial_shapes: (height, width) of each level.
        padding_mask: (B, S) bool, True on padding.
        valid_ratios: (B, L, 2) float32, the un-padded part of each level, (x, y).
        rows, columns: of each level, (B, H_l) and (B, W_l) float32: where its pixels have their
            centres, y and x, normalised by the un-padded size of the level; above 1 on padding.
        level_sizes: (S,) float32, 0.05 * 2^l for a token of level l: the side of its proposal.
    """

    spatial_shapes: list[tuple[int, int]]
    padding_mask: Tensor
    valid_ratios: Tensor
    rows: list[Tensor]
    columns: list[Tensor]
    level_sizes: Tensor

    @cached_property
    def centres(self) -> Tensor:
        """(B, S, 2): every token's pixel centre (x, y), as in rows and columns."""
        grids = [
            torch.stack(
                (
                    x[:, None, :].expand(-1, y.shape[1], -1),
                    y[:, :, None].expand(-1, -1, x.shape[1]),
                ),
                dim=-1,
            )
            for y, x in zip(self.rows, self.columns, strict=True)
        ]
        return torch.cat([grid.flatten(1, 2) for grid in grids], dim=1)

    @property
    def encoder_reference_points(self) -> Tensor:
        """(B, S, L, 2): every token's centre, normalised over each padded level in turn."""
        return self.centres[:, :, None] * self.valid_ratios[:, None]


def build_pyramid(padding_mask: Tensor, spatial_shapes: list[tuple[int, int]]) -> Pyramid:
    """Geometry of levels of these shapes, for images with padding_mask (B, H, W) bool."""
    level_masks = level_padding_masks(padding_mask, spatial_shapes)
    ratios, rows, columns, sizes = [], [], [], []
    for level, mask in enumerate(level_masks):
        height, width = mask.shape[1:]
        valid_height = (~mask[:, :, 0]).sum(1).float()  # (B,)
        valid_width = (~mask[:, 0, :]).sum(1).float()
        ratios.append(torch.stack((valid_width / width, valid_height / height), dim=-1))
        rows.append((torch.arange(height, device=mask.device) + 0.5) / valid_height[:, None])
        columns.append((torch.arange(width, device=mask.device) + 0.5) / valid_width[:, None])
        sizes.append(torch.full_like(mask[0].flatten(), 0.05 * 2**level, dtype=torch.float32))
    return Pyramid(
        spatial_shapes=spatial_shapes,
        padding_mask=torch.cat([mask.flatten(1) for mask in level_masks], dim=1),
        valid_ratios=torch.stack(ratios, dim=1),
        rows=rows,
        columns=columns,
        level_sizes=torch.cat(sizes),
    )


def level_padding_masks(
    padding_mask: Tensor, spatial_shapes: list[tuple[int, int]]
) -> list[Tensor]:
    """Nearest-neighbour reductions of padding_mask (B, H, W) to each level, (B, H_l, W_l) bool.

    Source row of row i is floor(i * H / H_l), in integers, so that every runtime agrees.
    """
    height, width = padding_mask.shape[1:]
    masks = []
    for h, w in spatial_shapes:
        rows = torch.arange(h, device=padding_mask.device) * height // h
        columns = torch.arange(w, device=padding_mask.device) * width // w
        masks.append(padding_mask[:, rows][:, :, columns])
    return masks
