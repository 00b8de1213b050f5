"""Which cells of a feature map are padding, and how they are hidden.

A convolution or pooling of stride 2 turns n rows into ceil(n / 2), and output i is centred on
input 2 i. So for an image alone, a map of stride s has ceil(n / s) rows. In a batch, row i belongs
to the image if pixel s i does: the map's mask is exactly every s-th element of the padding mask.
"""

import torch
from torch import Tensor


def halved_masks(padding_mask: Tensor, count: int) -> list[Tensor]:
    """Padding of maps of strides 2, 4, ... 2^count, from padding_mask (B, H, W) bool."""
    masks = []
    for _ in range(count):
        padding_mask = padding_mask[:, ::2, ::2]
        masks.append(padding_mask)
    return masks


def nearest_masks(padding_mask: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Padding (B, H_l, W_l) of levels of these (height, width), from padding_mask (B, H, W) bool.

    Rounded as in the published training: row i reads row floor(i * H / H_l), so the number of
    valid cells may differ from that of the image alone.
    """
    height, width = padding_mask.shape[1:]
    masks = []
    for h, w in shapes:
        rows = torch.arange(h, device=padding_mask.device) * height // h
        columns = torch.arange(w, device=padding_mask.device) * width // w
        masks.append(padding_mask[:, rows][:, :, columns])
    return masks


def valid_cells(padding: Tensor, like: Tensor) -> Tensor:
    """1 on the image and 0 on padding, (B, 1, h, w) of the dtype of `like`; padding (B, h, w)."""
    return (~padding)[:, None].to(like.dtype)


def zero_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """The map x (B, C, h, w), zero where padding (B, h, w) is True; x itself without a mask."""
    return x if padding is None else x * valid_cells(padding, x)
