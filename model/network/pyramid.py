"""Geometry of the flattened feature levels of a batch, for every part of the transformer."""

from collections.abc import Sequence
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
        has_proposal: (B, S) bool, whether the token gets a proposal: it is not padding, its centre
            is more than 1% of the image from the border, and its proposal's side does not exceed
            99% of the image. Other tokens get a box outside the image.
        excluded: (B, S) bool, the tokens that rank last and are not trained on: padding, or none in
            the published training.
        valid_ratios: (B, L, 2) float32, the un-padded part of each level, (x, y).
        rows, columns: of each level, (B, H_l) and (B, W_l) float32: y and x of its pixels' centres,
            normalised by the un-padded size of the level; above 1 on padding.
        level_sizes: (S,) float32, the side of a token's proposal: 0.05 * 2^l on level l.
    """

    spatial_shapes: list[tuple[int, int]]
    padding_mask: Tensor
    has_proposal: Tensor
    excluded: Tensor
    valid_ratios: Tensor
    rows: list[Tensor]
    columns: list[Tensor]
    level_sizes: Tensor

    @cached_property
    def centres(self) -> Tensor:
        """(B, S, 2): the centre (x, y) of every token, normalised as in rows and columns."""
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


def build_pyramid(level_masks: Sequence[Tensor], *, excludes_padding: bool = True) -> Pyramid:
    """Geometry of the levels with these padding masks, each (B, H_l, W_l) bool.

    Images are at the top left, so padding is whole rows and columns. `excludes_padding=False` is
    the published training, which ranks padding like tokens without a proposal.
    """
    ratios, rows, columns, sizes, proposals = [], [], [], [], []
    for level, mask in enumerate(level_masks):
        height, width = mask.shape[1:]
        # Every cast is explicit, since export adds none (export/graph/translation.py).
        valid_height = (~mask[:, :, 0]).long().sum(1)  # (B,)
        valid_width = (~mask[:, 0, :]).long().sum(1)
        y = torch.arange(height, device=mask.device)
        x = torch.arange(width, device=mask.device)
        ratios.append(
            torch.stack((valid_width.float() / width, valid_height.float() / height), dim=-1)
        )
        rows.append((y.float() + 0.5) / valid_height[:, None].float())
        columns.append((x.float() + 0.5) / valid_width[:, None].float())
        sizes.append(torch.full_like(mask[0].flatten(), 0.05 * 2**level, dtype=torch.float32))
        is_inside = (
            is_inside_border(y, valid_height)[:, :, None]
            & is_inside_border(x, valid_width)[:, None, :]
            & (5 * 2**level < 99)
        )
        proposals.append((is_inside & ~mask).flatten(1))
    padding_mask = torch.cat([mask.flatten(1) for mask in level_masks], dim=1)
    return Pyramid(
        spatial_shapes=[(mask.shape[1], mask.shape[2]) for mask in level_masks],
        padding_mask=padding_mask,
        has_proposal=torch.cat(proposals, dim=1),
        excluded=padding_mask if excludes_padding else torch.zeros_like(padding_mask),
        valid_ratios=torch.stack(ratios, dim=1),
        rows=rows,
        columns=columns,
        level_sizes=torch.cat(sizes),
    )


def is_inside_border(index: Tensor, count: Tensor) -> Tensor:
    """Whether 0.01 < (index + 0.5) / count < 0.99, for index (n,) and count (B,) -> (B, n).

    Computed in integers: the centre of the last of 50 cells is exactly 0.99, but a runtime that
    multiplies by the reciprocal of 50 gets less.
    """
    centre, whole = 50 * (2 * index + 1), count[:, None]
    return (centre > whole) & (centre < 99 * whole)
