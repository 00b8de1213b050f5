"""The two attentions of the transformer, each with the projections around it."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.dropout import dropout
from model.network.linear import Linear
from model.network.ops.ms_deform_attn import ms_deform_attn


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its four projections.

    Source: Deformable DETR, arXiv:2010.04159, section 4.1, eq. (3).
    """

    def __init__(
        self, hidden_dim: int, num_heads: int, *, num_levels: int, num_points: int
    ) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(hidden_dim, samples * 2)
        self.attention_weights = Linear(hidden_dim, samples)
        self.value_proj = Linear(hidden_dim, hidden_dim)
        self.output_proj = Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every head looks in its own direction, point k at distance k + 1; weights are equal."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # (M, 2)
        distances = torch.arange(1, self.num_points + 1.0)
        grid = directions[:, None, None] * distances[:, None]  # (M, 1, P, 2)
        self.sampling_offsets.bias.copy_(grid.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        source: Tensor,
        *,
        reference_points: Tensor,
        padding_mask: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend from queries to the flattened feature levels.

        Args:
            query: (B, Q, C), position already added.
            source: (B, S, C), without position.
            reference_points: (B, Q, L, 2 or 4) float32, normalised over the padded maps.
            padding_mask: (B, S) bool, True on padding.
            spatial_shapes: (height, width) of every level.

        Returns:
            (B, Q, C), dtype of the features.
        """
        heads = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(source).masked_fill(padding_mask[..., None], 0.0)
        attended = ms_deform_attn(
            value.unflatten(-1, (self.num_heads, -1)),  # (B, S, M, D)
            spatial_shapes,
            reference_points,
            self.sampling_offsets(query).unflatten(-1, (*heads, 2)),  # (B, Q, M, L, P, 2)
            self.attention_weights(query).unflatten(-1, heads),  # (B, Q, M, L, P)
        )
        output: Tensor = self.output_proj(attended)
        return output


class SelfAttention(nn.Module):
    """Multi-head attention among the object queries; projections are packed as Q, K, V."""

    def __init__(self, hidden_dim: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, query_pos: Tensor, parts: Tensor | None = None) -> Tensor:
        """Maps queries (B, Q, C) and positions (B, Q, C) to (B, Q, C); values have no position.

        With parts (B, Q) int64, a query sees only those of its own part.
        """
        hidden_dim = queries.shape[-1]
        positioned = queries + query_pos
        weight_qk, weight_v = self.in_proj_weight.split((2 * hidden_dim, hidden_dim))
        bias_qk, bias_v = self.in_proj_bias.split((2 * hidden_dim, hidden_dim))
        q, k = F.linear(positioned, weight_qk, bias_qk).chunk(2, dim=-1)
        v = F.linear(queries, weight_v, bias_v)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        # F.scaled_dot_product_attention gives the same, but in ONNX it is 35 nodes instead of 26.
        scores = q @ k.transpose(-1, -2) / math.sqrt(hidden_dim // self.num_heads)
        if parts is not None:
            is_other = parts[:, None, :, None] != parts[:, None, None, :]  # (B, 1, Q, Q)
            scores = scores.masked_fill(is_other, -math.inf)
        weights = dropout(scores.softmax(-1), self.dropout, training=self.training)  # (B, M, Q, Q)
        output: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(-2))
        return output
