"""The detector: backbone -> input_proj -> encoder -> queries -> decoder -> heads."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig, Variant
from model.network.backbone import ResNet
from model.network.convolution import Conv2d
from model.network.padding import halved_masks, nearest_masks, valid_cells, zero_padding
from model.network.position_encoding import encode_pixels
from model.network.pyramid import Pyramid, build_pyramid
from model.network.queries import BoxHead, LearnedQueries, ProposalQueries, class_head
from model.network.query_parts import NoisyObjects
from model.network.transformer import Decoder, Encoder

NUM_GROUPS = 32  # in every GroupNorm of the neck


class GroupNorm(nn.GroupNorm):
    """Group norm; with a padding mask, statistics exclude padding."""

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, h, w), whose padding (B, h, w) bool is True on padding.

        Mean and variance are computed in two passes, at least in float32.
        """
        if padding is None:
            x = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            return x
        exact = x if x.dtype is torch.float64 else x.float()
        valid = valid_cells(padding, exact)  # (B, 1, h, w)
        count = valid.sum((1, 2, 3))[:, None] * (self.num_channels // self.num_groups)

        def group_mean(values: Tensor) -> Tensor:  # (B, C, h, w) -> (B, G)
            sums: Tensor = values.sum((2, 3)).unflatten(1, (self.num_groups, -1))
            return sums.sum(2) / count

        def of_channels(groups: Tensor) -> Tensor:  # (B, G) -> (B, C)
            repeated = groups[..., None].expand(-1, -1, self.num_channels // self.num_groups)
            return repeated.flatten(1)

        # The preceding convolution must have a single consumer: with two, one of them a sum,
        # OpenVINO 2026.4 loses the scale of its int8 weights.
        inside = exact * valid
        centred = (inside - of_channels(group_mean(inside))[..., None, None]) * valid
        deviation = torch.rsqrt(group_mean(centred.square()) + self.eps)
        scale = of_channels(deviation) * self.weight
        return (centred * scale[..., None, None] + self.bias[:, None, None]).to(x.dtype)


class InputProjection(nn.Module):
    """Convolution of a backbone map to C channels, then GroupNorm; no activation."""

    def __init__(self, in_channels: int, hidden_dim: int, *, kernel_size: int, bias: bool) -> None:
        super().__init__()
        stride, padding = (1, 0) if kernel_size == 1 else (2, 1)
        self.conv = Conv2d(in_channels, hidden_dim, kernel_size, stride, padding, bias=bias)
        self.norm = GroupNorm(NUM_GROUPS, hidden_dim)
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Maps x (B, C', h', w') to (B, C, h, w), whose padding (B, h, w) bool is True on padding.

        Without a mask, padding counts as part of the image.
        """
        x = self.norm(self.conv(x), padding)
        return x


class DeformableDetr(nn.Module):
    """Deformable DETR in its three variants.

    Input: images (B, 3, H, W) float, normalised, zero on padding; padding_mask (B, H, W) bool,
    True on padding. Images are at the top left of the batch. The outputs of an image depend neither
    on other images nor on padding, except in published training (`ModelConfig.train_padding`).

    Output, a dict:
        pred_logits: (B, Q, K), before the sigmoid. No class stands for background.
        pred_boxes: (B, Q, 4) float32 from 0 to 1, cxcywh normalised by the un-padded image.
        aux_outputs: list of the same pair for every earlier decoder layer.
        enc_outputs: the same pair for every encoder token (two_stage only).
        one_to_many, denoising: the first three for these kinds of queries, in training with them.

    Features and logits may have the type of autocast; reference points and boxes are always
    float32.

    Source: Zhu et al., arXiv:2010.04159.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.backbone = ResNet(
            config.backbone_width,
            config.backbone_blocks,
            block=config.backbone_block,
            frozen_stages=config.frozen_stages,
            train_bn=config.train_batch_norm,
            recomputes=config.gradient_checkpointing,
        )
        self.input_proj = nn.ModuleList(
            InputProjection(channels, dim, kernel_size=1, bias=config.input_proj_bias)
            for channels in self.backbone.out_channels
        )
        channels = self.backbone.out_channels[-1]  # the first extra level reads C5 itself
        for _ in range(config.num_levels - len(self.backbone.out_channels)):
            self.input_proj.append(
                InputProjection(channels, dim, kernel_size=3, bias=config.input_proj_bias)
            )
            channels = dim
        self.level_embed = nn.Parameter(torch.randn(config.num_levels, dim))
        self.encoder = Encoder(config)

        refines = config.variant is not Variant.BASE
        is_two_stage = config.variant is Variant.TWO_STAGE
        self.queries = (ProposalQueries if is_two_stage else LearnedQueries)(config)
        self.decoder = Decoder(config, refines=refines)
        num_heads = config.num_decoder_layers if refines else 1  # base: one pair, shared
        self.class_heads = nn.ModuleList(class_head(config) for _ in range(num_heads))
        self.box_heads = nn.ModuleList(
            BoxHead(dim, initial_size_logit=-2.0 if i == 0 and not is_two_stage else 0.0)
            for i in range(num_heads)
        )

    def forward(
        self, images: Tensor, padding_mask: Tensor, noisy: NoisyObjects | None = None
    ) -> dict[str, Any]:
        """Maps images (B, 3, H, W) and padding_mask (B, H, W) to the outputs listed above.

        Args:
            noisy: objects for `denoising_queries`, in training.
        """
        features, pyramid = self._features(images, padding_mask)
        tokens = torch.cat([f.flatten(2).transpose(1, 2) for f in features], dim=1)  # (B, S, C)
        position = torch.cat(
            [
                (encode_pixels(y, x, hidden_dim=tokens.shape[-1]) + embed).flatten(1, 2)
                for y, x, embed in zip(pyramid.rows, pyramid.columns, self.level_embed, strict=True)
            ],
            dim=1,
        )
        memory = self.encoder(tokens, position.to(tokens.dtype), pyramid)

        queries = self.queries(memory, pyramid, *([] if noisy is None else [noisy]))
        num_layers = self.config.num_decoder_layers
        repeats = num_layers // len(self.box_heads)
        layers = self.decoder(
            queries.content,
            queries.position,
            queries.reference_points,
            memory,
            pyramid,
            list(self.box_heads) * repeats,
            queries.parts,
        )
        class_heads = list(self.class_heads) * repeats
        outputs = [
            {"pred_logits": head(layer.queries), "pred_boxes": layer.boxes}
            for head, layer in zip(class_heads, layers, strict=True)
        ]
        if queries.sizes is None:
            result = _by_layer(outputs)
        else:
            matched, one_to_many, denoising = _divide(outputs, queries.sizes)
            several = {"one_to_many": one_to_many} if self.config.one_to_many_queries else {}
            result = {**matched, **several, **({} if noisy is None else {"denoising": denoising})}
        if queries.enc_outputs is not None:
            result["enc_outputs"] = queries.enc_outputs
        return result

    def _features(self, images: Tensor, padding_mask: Tensor) -> tuple[list[Tensor], Pyramid]:
        """Feature levels (B, C, H_l, W_l), finest first, and their geometry."""
        num_levels = self.config.num_levels
        if self.training and self.config.train_padding == "published":
            features = self._project(self.backbone(images), [None] * num_levels)
            shapes = [(feature.shape[2], feature.shape[3]) for feature in features]
            masks = nearest_masks(padding_mask, shapes)
            return features, build_pyramid(masks, excludes_padding=False)
        masks = halved_masks(padding_mask, 2 + num_levels)
        features = self._project(self.backbone(images, masks[:5]), masks[2:])
        return features, build_pyramid(masks[2:])

    def _project(self, maps: Sequence[Tensor], paddings: Sequence[Tensor | None]) -> list[Tensor]:
        """One level per mask: from C3, C4 and C5, then each from its predecessor."""
        features: list[Tensor] = []
        for level, (projection, padding) in enumerate(zip(self.input_proj, paddings, strict=True)):
            if level < len(maps):
                source = maps[level]
            else:
                source = maps[-1] if level == len(maps) else features[-1]
                source = zero_padding(source, paddings[level - 1])
            features.append(projection(source, padding))
        return features


def _by_layer(outputs: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The last layer's outputs, and those before it."""
    return {**outputs[-1], "aux_outputs": outputs[:-1]}


def _divide(outputs: list[dict[str, Tensor]], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """The outputs of each part of the queries."""
    parts = [{name: x.split(sizes, dim=1) for name, x in layer.items()} for layer in outputs]
    return [
        _by_layer([{name: x[part] for name, x in layer.items()} for layer in parts])
        for part in range(len(sizes))
    ]
