"""The sources of object queries: a learned table, or proposals of the encoder."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.position_encoding import encode_boxes
from model.network.pyramid import Pyramid
from model.network.query_parts import NoisyObjects, query_parts

PRIOR_LOGIT = -math.log((1 - 0.01) / 0.01)  # at the start, every class has probability 0.01
INVALID_LOGIT = 1e4  # instead of +inf: its sigmoid is exactly 1, and no runtime turns it into NaN
PADDING_LOGIT = -6e4  # of every class on padding; fits float16, and its focal loss is 0


class Queries(NamedTuple):
    """Input of the decoder.

    content, position: (B, Q, C). reference_points: (B, Q, 2 or 4), normalised.
    enc_outputs: pred_logits (B, S, K) and pred_boxes (B, S, 4) of every proposal, or None.
    sizes: how many are matched one to one, matched one to many, and noisy; None: all one to one.
    parts: (B, Q) int64, see `query_parts`; None if there is only one.
    """

    content: Tensor
    position: Tensor
    reference_points: Tensor
    enc_outputs: dict[str, Tensor] | None
    sizes: tuple[int, int, int] | None = None
    parts: Tensor | None = None


class Float32Linear(nn.Linear):
    """A linear layer that stays in float32 under autocast: its output places samples and boxes.

    In bfloat16, 300 points of an untrained layer are up to 0.4 pixels off on a level 167 wide.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class BoxHead(nn.Module):
    """Three linear layers to a box delta, initially zero except for the logits of the size."""

    def __init__(self, hidden_dim: int, initial_size_logit: float) -> None:
        super().__init__()
        last = Float32Linear(hidden_dim, 4)
        self.layers = nn.ModuleList(
            (nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim), last)
        )
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([0.0, 0.0, initial_size_logit, initial_size_logit]))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., 4)."""
        x = F.relu(self.layers[0](x))
        x = F.relu(self.layers[1](x))
        boxes: Tensor = self.layers[2](x)
        return boxes


def class_head(config: ModelConfig) -> nn.Linear:
    """Linear layer C -> K whose bias starts at the prior probability 0.01 (arXiv:1708.02002)."""
    head = nn.Linear(config.hidden_dim, config.num_classes)
    nn.init.constant_(head.bias, PRIOR_LOGIT)
    return head


class LearnedQueries(nn.Module):
    """A table of queries, the same for every image, and their learned reference points."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_queries, 2 * config.hidden_dim)
        self.reference_points = Float32Linear(config.hidden_dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Tensor, pyramid: Pyramid) -> Queries:
        """The learned queries (B, Q, C) and points (B, Q, 2), for the B of memory (B, S, C)."""
        position, content = self.embedding.weight.chunk(2, dim=-1)  # position first
        reference_points = self.reference_points(position).sigmoid()
        batch = memory.shape[0]
        return Queries(
            content.expand(batch, -1, -1),
            position.expand(batch, -1, -1),
            reference_points.expand(batch, -1, -1),
            None,
        )


class ProposalQueries(nn.Module):
    """Queries from the best proposals among the encoder's tokens.

    Source: arXiv:2010.04159, section 4.2, two-stage, and its appendix.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.num_queries = config.num_queries
        self.num_one_to_many = config.one_to_many_queries
        self.content_from_memory = config.query_content == "memory"
        is_learned = config.query_content == "learned"
        num_rows = config.num_queries + config.one_to_many_queries
        self.content = nn.Embedding(num_rows, dim) if is_learned else None
        self.label_content = (
            nn.Embedding(config.num_classes, dim) if config.denoising_queries else None
        )
        self.memory_proj = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.position_proj = nn.Linear(2 * dim, 2 * dim)
        self.position_norm = nn.LayerNorm(2 * dim)
        self.class_head = class_head(config)
        self.box_head = BoxHead(dim, initial_size_logit=0.0)
        nn.init.xavier_uniform_(self.memory_proj.weight)
        nn.init.xavier_uniform_(self.position_proj.weight)

    def forward(
        self, memory: Tensor, pyramid: Pyramid, noisy: NoisyObjects | None = None
    ) -> Queries:
        """Maps memory (B, S, C) to its Q best proposals, at most S: (B, Q, C), boxes (B, Q, 4).

        In training, proposals for one-to-many matching and noisy objects follow them.
        """
        anchors = proposal_logits(pyramid)
        tokens = memory.masked_fill(~pyramid.has_proposal[..., None], 0.0)
        tokens = self.memory_norm(self.memory_proj(tokens))

        # The ranking of proposals and the chosen boxes are computed separately from the outputs for
        # the loss: a graph for inference drops those, and with them the heads on most tokens.
        objectness = F.linear(tokens, self.class_head.weight[:1], self.class_head.bias[:1])
        excluded = pyramid.excluded[..., None]  # (B, S, 1)
        objectness = objectness.masked_fill(excluded, PADDING_LOGIT)
        num_tokens = tokens.shape[1]
        # A comparison rather than min(): tracing resolves it, so the count stays a constant.
        wanted = self.num_queries + (self.num_one_to_many if self.training else 0)
        count = wanted if num_tokens >= wanted else num_tokens
        best = objectness[..., 0].topk(count, dim=1).indices[..., None]  # (B, Q, 1)
        chosen = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1])).detach()  # (B, Q, C)
        chosen_anchors = anchors.gather(1, best.expand(-1, -1, 4))
        reference_points = (self.box_head(chosen) + chosen_anchors).detach().sigmoid()

        position, content = self._encode(reference_points, memory.dtype)
        if self.content is not None:
            content = self.content.weight[:count].expand(memory.shape[0], -1, -1)
        queries = Queries(
            chosen if self.content_from_memory else content,
            position,
            reference_points,
            enc_outputs={
                "pred_logits": self.class_head(tokens).masked_fill(excluded, PADDING_LOGIT),
                "pred_boxes": (self.box_head(tokens) + anchors).sigmoid(),
            },
        )
        has_parts = self.training and (self.num_one_to_many or noisy is not None)
        return self._with_parts(queries, noisy) if has_parts else queries

    def _encode(self, boxes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Position and content, each (B, Q, C), of boxes (B, Q, 4)."""
        num_features = self.position_proj.in_features // 4
        embedding = encode_boxes(boxes, num_features).to(dtype)
        position, content = self.position_norm(self.position_proj(embedding)).chunk(2, dim=-1)
        return position, content

    def _with_parts(self, queries: Queries, noisy: NoisyObjects | None) -> Queries:
        """The proposals divided into their parts, with noisy objects at the end."""
        content, position, boxes = queries.content, queries.position, queries.reference_points
        num_matched = min(self.num_queries, content.shape[1])
        num_one_to_many = content.shape[1] - num_matched
        groups = torch.empty(len(content), 0, dtype=torch.int64, device=content.device)
        if noisy is not None:
            assert self.label_content is not None
            groups = noisy.groups
            noisy_position, _ = self._encode(noisy.boxes, position.dtype)
            noisy_content = self.label_content(noisy.labels).to(content.dtype)
            content = torch.cat((content, noisy_content), dim=1)
            position = torch.cat((position, noisy_position), dim=1)
            boxes = torch.cat((boxes, noisy.boxes), dim=1)
        return Queries(
            content,
            position,
            boxes,
            queries.enc_outputs,
            sizes=(num_matched, num_one_to_many, groups.shape[1]),
            parts=query_parts(num_matched, num_one_to_many, groups=groups, batch_size=len(content)),
        )


def proposal_logits(pyramid: Pyramid) -> Tensor:
    """A square proposal around every token, as logits of cxcywh (B, S, 4).

    The logits are `INVALID_LOGIT` where `has_proposal` is False.
    """
    sizes = pyramid.level_sizes[None, :, None].expand(pyramid.centres.shape[0], -1, 2)
    boxes = torch.cat((pyramid.centres, sizes), dim=-1).clamp(0.01, 0.99)  # (B, S, 4)
    logits = torch.log(boxes / (1 - boxes))
    return logits.masked_fill(~pyramid.has_proposal[..., None], INVALID_LOGIT)
