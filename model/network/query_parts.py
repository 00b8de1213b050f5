"""Parts of the queries that only training has, and that no other part may see.

The decoder's queries are, in this order: those that are matched one to one, which is all that
inference has; those that several of which are matched to an object; and noisy objects.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MATCHED, ONE_TO_MANY, FIRST_GROUP = range(3)


class NoisyObjects(NamedTuple):
    """Objects of a batch with noise, which queries have to find again; N slots an image.

    Attributes:
        labels: (B, N) int64, some of them wrong.
        boxes: (B, N, 4) float32, normalised cxcywh, away from the true ones.
        groups: (B, N) int64, from 0; each has every object once near and once far. -1: empty slot.
        truth: (B, N) int64, the object that is to be found; -1: none is, as in empty slots.
    """

    labels: Tensor
    boxes: Tensor
    groups: Tensor
    truth: Tensor


def query_parts(
    num_matched: int, num_one_to_many: int, *, groups: Tensor, batch_size: int
) -> Tensor:
    """The part (B, Q) int64 that each query belongs to; it sees only queries of its own part.

    Args:
        groups: (B, N), of `NoisyObjects`. Each empty slot is a part of its own.
    """
    counts = torch.tensor([num_matched, num_one_to_many], device=groups.device)
    kinds = torch.tensor([MATCHED, ONE_TO_MANY], device=groups.device)
    first = kinds.repeat_interleave(counts).expand(batch_size, -1)
    alone = -1 - torch.arange(groups.shape[1], device=groups.device)
    return torch.cat((first, torch.where(groups >= 0, groups + FIRST_GROUP, alone)), dim=1)
