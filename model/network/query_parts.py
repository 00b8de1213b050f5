"""Extra queries for training, and which queries may see each other.

The decoder's queries come in three parts: those matched one to one, which are all that inference
has; in training, those of which several are matched to each object; and noisy objects. No query
sees those of another part.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MATCHED, ONE_TO_MANY, FIRST_GROUP = range(3)


class NoisyObjects(NamedTuple):
    """Noisy copies of a batch's objects, which queries learn to restore; N slots per image.

    Attributes:
        labels: (B, N) int64, some of them wrong.
        boxes: (B, N, 4) float32, normalised cxcywh, away from the true ones.
        groups: (B, N) int64, from 0; each has every object once near and once far. -1: empty slot.
        truth: (B, N) int64, the object to be found; -1 for far copies and empty slots. It stays
            on the host, which makes the pairs.
    """

    labels: Tensor
    boxes: Tensor
    groups: Tensor
    truth: Tensor

    def to(self, device: torch.device) -> "NoisyObjects":
        """What the model reads, on its device; nothing waits for it."""
        read = (self.labels, self.boxes, self.groups)
        labels, boxes, groups = (part.to(device, non_blocking=True) for part in read)
        return NoisyObjects(labels, boxes, groups, self.truth)


def query_parts(
    num_matched: int, num_one_to_many: int, *, groups: Tensor, batch_size: int
) -> Tensor:
    """The part (B, Q) int64 that each query belongs to; it sees only queries of its own part.

    Args:
        groups: (B, N), of `NoisyObjects`. Each empty slot is a part of its own.
    """
    index = torch.arange(num_matched + num_one_to_many, device=groups.device)
    first = torch.where(index < num_matched, MATCHED, ONE_TO_MANY).expand(batch_size, -1)
    alone = -1 - torch.arange(groups.shape[1], device=groups.device)
    return torch.cat((first, torch.where(groups >= 0, groups + FIRST_GROUP, alone)), dim=1)
