"""Deformable DETR from Hugging Face transformers: a peer, and the source of the weights.

The backbone is transformers' own ResNet-50, which does not need timm and does the same work. The
rest is unchanged: on a CPU the model samples with `grid_sample`, and batch norms are not folded.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from bundle.postprocess import RawOutput
from bundle.preprocess import Preprocess
from model.config import Variant
from model.network.inference import decode_detections, normalise

NUM_CLASSES = 80
NUM_DETECTIONS = 100
# A new model samples on a fixed grid and weights all samples equally; its biases are zero and its
# norms change nothing. A runtime could then skip work that a trained model needs. So everything
# gets noise, and the op's projections get weights that spread offsets by two pixels (their inputs
# are normalised, C = 256).
OFFSETS_STD, WEIGHTS_STD, NOISE_STD = 2.0 / 16, 1.0 / 16, 0.02

# From the names in transformers' ResNet to those in the published files, which are timm's.
_STAGE = r"backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d+)"
_RESNET_NAMES = (
    (r"backbone\.model\.embedder\.embedder\.convolution\.", "backbone.model.conv1."),
    (r"backbone\.model\.embedder\.embedder\.normalization\.", "backbone.model.bn1."),
    (rf"{_STAGE}\.shortcut\.convolution\.", "backbone.model.layer{}.{}.downsample.0."),
    (rf"{_STAGE}\.shortcut\.normalization\.", "backbone.model.layer{}.{}.downsample.1."),
    (rf"{_STAGE}\.layer\.(\d)\.convolution\.", "backbone.model.layer{}.{}.conv{}."),
    (rf"{_STAGE}\.layer\.(\d)\.normalization\.", "backbone.model.layer{}.{}.bn{}."),
)


def build_peer(variant: Variant, **settings: Any) -> DeformableDetrForObjectDetection:
    """The model of a variant, in evaluation mode, with the same random weights every time.

    Args:
        settings: fields of its configuration that differ from the defaults.
    """
    config = DeformableDetrConfig(
        backbone_config=ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
        with_box_refine=variant is not Variant.BASE,
        two_stage=variant is Variant.TWO_STAGE,
        num_labels=NUM_CLASSES,
        **settings,
    )
    torch.manual_seed(0)
    model = DeformableDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                tensor.normal_(std=OFFSETS_STD if "offsets" in name else WEIGHTS_STD)
            elif re.search(r"class_embed\.\d\.weight", name):
                tensor.normal_(std=WEIGHTS_STD)
            elif tensor.ndim == 1:
                tensor.mul_(1 + NOISE_STD * torch.rand_like(tensor))
                tensor.add_(NOISE_STD * torch.rand_like(tensor))
    return model


def build_training_peer(variant: Variant, *, dropout: float) -> DeformableDetrForObjectDetection:
    """The model in training mode, with the loss of every decoder layer.

    As published, dropout is everywhere, and all stages but the first are trained; by default, this
    version drops nothing within layers, and freezes the whole of its own ResNet.
    """
    model = build_peer(
        variant,
        auxiliary_loss=True,
        dropout=dropout, attention_dropout=dropout, activation_dropout=dropout,
    ).train()  # fmt: skip
    for name, parameter in model.named_parameters():
        if "backbone" in name:
            parameter.requires_grad_(re.search(r"stages\.[123]\.", name) is not None)
    return model


def published_tensors(model: DeformableDetrForObjectDetection) -> dict[str, Tensor]:
    """Its tensors with the names of published files, as `model.checkpoints.convert` reads them."""
    return {_published_name(name): x.clone() for name, x in model.state_dict().items()}


def open_peer(
    model: DeformableDetrForObjectDetection, images: np.ndarray, *, mode: str, device: str = "cpu"
) -> Callable[[], RawOutput]:
    """A function that runs the model on images (B, H, W, 3) uint8, normalised beforehand.

    Args:
        mode: "fp32", "bf16" or "fp16" (autocast), or "compile" (inductor, float32).
        device: of the model.
    """
    padding_mask = torch.zeros(images.shape[:3], dtype=torch.bool)
    pixels = normalise(torch.from_numpy(images), padding_mask, preprocess=Preprocess()).contiguous()
    pixels, pixel_mask = pixels.to(device), (~padding_mask).long().to(device)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mode)
    network: Callable[..., Any] = torch.compile(model) if mode == "compile" else model

    def run() -> RawOutput:
        with torch.inference_mode(), torch.autocast(device, half, enabled=half is not None):
            output = network(pixel_values=pixels, pixel_mask=pixel_mask)
            found = decode_detections(
                output.logits, output.pred_boxes, num_detections=NUM_DETECTIONS
            )
        return RawOutput(*(part.cpu().numpy() for part in found))

    return run


def _published_name(name: str) -> str:
    for pattern, published in _RESNET_NAMES:
        if match := re.search(pattern, name):
            numbers = [int(number) + 1 for number in match.groups()]
            if len(numbers) > 1:
                numbers[1] -= 1  # stages and convolutions count from one, blocks from zero
            return name.replace(match[0], published.format(*numbers))
    return name
