"""Backbone pre-training on small crops: what stands for ImageNet weights in the demo."""

import logging

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from model.config import TrainConfig
from model.data.digits import BACKGROUND, Split, crop_batch
from model.deformable_detr import DeformableDetr
from model.inference import normalise
from model.interrupt import StopRequest
from model.schedule import cosine_factor

BATCH_SIZE = 128
LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
WEIGHT_DECAY = 1e-4
HELD_OUT_CROPS = 1024
log = logging.getLogger(__name__)


def pretrain_backbone(
    detector: DeformableDetr, config: TrainConfig, stop: StopRequest, *, progress_bar: bool = True
) -> float:
    """Train the detector's backbone, in place, to name the digit in a crop, or background.

    A linear classifier on the mean of C5 is trained along and dropped. Crops and initial
    classifier follow from `config.seed` alone: a run that is interrupted here starts over and
    comes to the same weights.

    Returns:
        The share of crops of the validation split that are named rightly.

    Raises:
        Interrupted: a stop was requested.
    """
    device = next(detector.parameters()).device
    backbone = detector.backbone
    generator = torch.Generator().manual_seed(config.seed)
    classifier = nn.Linear(backbone.out_channels[-1], BACKGROUND + 1)
    nn.init.normal_(classifier.weight, std=0.01, generator=generator)
    nn.init.zeros_(classifier.bias)
    classifier.to(device)
    parameters = [p for p in backbone.parameters() if p.requires_grad] + [*classifier.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def batch(key: int, size: int, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        crops, labels = crop_batch(np.random.default_rng((config.seed, key)), size, split)
        no_padding = torch.zeros(crops.shape[:3], dtype=torch.bool, device=device)
        images = normalise(torch.from_numpy(crops).to(device), no_padding, config.preprocess)
        return images, torch.from_numpy(labels).to(device)

    def logits(images: torch.Tensor) -> torch.Tensor:
        return classifier(backbone(images)[-1].mean((2, 3)))

    backbone.train()
    steps = tqdm(
        range(config.pretrain_steps), desc="backbone", unit="step", disable=not progress_bar
    )
    for step in steps:
        stop.check()
        factor = min(1.0, (step + 1) / WARMUP_STEPS) * cosine_factor(step, config.pretrain_steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        images, labels = batch(step + 1, BATCH_SIZE, "train")
        predicted = logits(images)
        loss = F.cross_entropy(predicted, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            accuracy = (predicted.argmax(1) == labels).float().mean()
            steps.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{accuracy.item():.3f}")
    backbone.eval()
    with torch.no_grad():
        images, labels = batch(0, HELD_OUT_CROPS, "val")
        share = (logits(images).argmax(1) == labels).float().mean().item()
    log.info("backbone pre-training: %.1f%% of validation crops named rightly", 100 * share)
    return share
