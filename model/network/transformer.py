"""Encoder and decoder layers and their stacks; post-norm throughout, no final norm."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.attention import MSDeformAttn, SelfAttention
from model.network.boxes import inverse_sigmoid
from model.network.dropout import Dropout, dropped_relu
from model.network.linear import Linear
from model.network.pyramid import Pyramid
from model.network.recompute import run_layer


class FeedForward(nn.Module):
    """Two linear layers around a ReLU; dropout on the hidden layer and on the output."""

    def __init__(self, hidden_dim: int, ffn_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.linear1 = Linear(hidden_dim, ffn_dim)
        self.linear2 = Linear(ffn_dim, hidden_dim)
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., C)."""
        x = dropped_relu(self.linear1(x), self.dropout.p, training=self.training)
        x = self.dropout(self.linear2(x))
        return x


def _cross_attention(config: ModelConfig) -> MSDeformAttn:
    return MSDeformAttn(
        config.hidden_dim,
        config.num_heads,
        num_levels=config.num_levels,
        num_points=config.num_points,
    )


class EncoderLayer(nn.Module):
    """Deformable self-attention over the feature levels, then a feed-forward network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = _cross_attention(config)
        self.norm1 = nn.LayerNorm(config.hidden_dim)
        self.ffn = FeedForward(config.hidden_dim, config.ffn_dim, dropout=config.dropout)
        self.norm2 = nn.LayerNorm(config.hidden_dim)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, tokens: Tensor, position: Tensor, reference_points: Tensor, pyramid: Pyramid
    ) -> Tensor:
        """Maps tokens (B, S, C) to (B, S, C).

        Args:
            position: (B, S, C), added to the queries, not to the values.
            reference_points: (B, S, L, 2) float32, each token's position on every level.
        """
        attended = self.self_attn(
            tokens + position,
            tokens,
            reference_points=reference_points,
            padding_mask=pyramid.padding_mask,
            spatial_shapes=pyramid.spatial_shapes,
        )
        tokens = self.norm1(tokens + self.dropout(attended))
        tokens = self.norm2(tokens + self.ffn(tokens))
        return tokens


class Encoder(nn.Module):
    """Stack of encoder layers: flattened features -> memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recomputes = config.gradient_checkpointing
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))

    def forward(self, tokens: Tensor, position: Tensor, pyramid: Pyramid) -> Tensor:
        """Maps tokens (B, S, C) and their position encoding (B, S, C) to memory (B, S, C)."""
        reference_points = pyramid.encoder_reference_points
        for layer in self.layers:
            tokens = run_layer(
                layer, tokens, position, reference_points, pyramid, recomputes=self.recomputes
            )
        return tokens


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to memory, feed-forward network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.hidden_dim, config.num_heads, dropout=config.dropout)
        self.norm1 = nn.LayerNorm(config.hidden_dim)
        self.cross_attn = _cross_attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_dim)
        self.ffn = FeedForward(config.hidden_dim, config.ffn_dim, dropout=config.dropout)
        self.norm3 = nn.LayerNorm(config.hidden_dim)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        queries: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        pyramid: Pyramid,
        parts: Tensor | None = None,
    ) -> Tensor:
        """Maps queries (B, Q, C) to (B, Q, C).

        Args:
            query_pos: (B, Q, C), added to the queries, not to the values.
            reference_points: (B, Q, L, 2 or 4) float32, normalised over the padded maps.
            memory: (B, S, C), from the encoder.
            parts: (B, Q) int64, of queries that see each other; None if all do.
        """
        queries = self.norm1(queries + self.dropout(self.self_attn(queries, query_pos, parts)))
        attended = self.cross_attn(
            queries + query_pos,
            memory,
            reference_points=reference_points,
            padding_mask=pyramid.padding_mask,
            spatial_shapes=pyramid.spatial_shapes,
        )
        queries = self.norm2(queries + self.dropout(attended))
        queries = self.norm3(queries + self.ffn(queries))
        return queries


class DecoderLayerOutput(NamedTuple):
    """The output of one decoder layer: queries (B, Q, C), boxes (B, Q, 4) normalised cxcywh."""

    queries: Tensor
    boxes: Tensor


class Decoder(nn.Module):
    """Stack of decoder layers, each followed by its box head.

    With `refines`, a layer's detached boxes are the reference points of the next layer
    (arXiv:2010.04159, section 4.2); otherwise every layer uses the initial ones.
    """

    def __init__(self, config: ModelConfig, *, refines: bool) -> None:
        super().__init__()
        self.refines = refines
        self.looks_twice = config.look_forward_twice
        self.recomputes = config.gradient_checkpointing
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))

    def forward(
        self,
        queries: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        pyramid: Pyramid,
        box_heads: Sequence[nn.Module],
        parts: Tensor | None = None,
    ) -> list[DecoderLayerOutput]:
        """Decode queries (B, Q, C); returns the output of every layer.

        Args:
            queries, query_pos: (B, Q, C), content and position.
            reference_points: (B, Q, 2 or 4) float32, normalised by the image without padding.
            memory: (B, S, C), from the encoder.
            box_heads: one per layer, perhaps shared; each maps (B, Q, C) to (B, Q, 4).
            parts: (B, Q) int64, of queries that see each other; None if all do.
        """
        outputs = []
        anchor = reference_points  # the same numbers, of which the box may be a function
        for layer, box_head in zip(self.layers, box_heads, strict=True):
            ratios = pyramid.valid_ratios[:, None]  # (B, 1, L, 2)
            if reference_points.shape[-1] == 4:
                ratios = torch.cat((ratios, ratios), dim=-1)
            points = reference_points[:, :, None] * ratios  # (B, Q, L, 2 or 4)
            queries = run_layer(
                layer,
                *(queries, query_pos, points, memory, pyramid, parts),
                recomputes=self.recomputes,
            )
            delta = box_head(queries)
            boxes = apply_box_delta(delta, anchor)
            outputs.append(DecoderLayerOutput(queries, boxes))
            if self.refines:
                looks_twice = self.looks_twice and self.training
                corrected = apply_box_delta(delta, reference_points) if looks_twice else boxes
                reference_points = corrected.detach()
                anchor = corrected if looks_twice else reference_points
        return outputs


def apply_box_delta(delta: Tensor, reference_points: Tensor) -> Tensor:
    """Boxes (B, Q, 4) in [0, 1] from deltas (B, Q, 4) in logit space around reference points.

    Around a point (B, Q, 2), only the centre is relative; a box (B, Q, 4) is corrected entirely.
    In float32.
    """
    delta = delta.float()
    anchor = inverse_sigmoid(reference_points)
    if reference_points.shape[-1] == 4:
        return (delta + anchor).sigmoid()
    return torch.cat((delta[..., :2] + anchor, delta[..., 2:]), dim=-1).sigmoid()
