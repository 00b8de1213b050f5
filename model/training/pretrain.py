"""Backbone pre-training on small crops, which replaces ImageNet weights in the demo."""

import logging
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TrainConfig
from model.data.digits import BACKGROUND, crop_batch
from model.data.workers import work_ahead
from model.network.deformable_detr import DeformableDetr
from model.network.inference import normalise
from model.progress import progress_bar
from model.training.interrupt import StopRequest
from model.training.schedule import cosine_factor

BATCH_SIZE = 64
LEARNING_RATE = 4e-3
WARMUP_STEPS = 50
WEIGHT_DECAY = 1e-4
HELD_OUT_CROPS = 1024
log = logging.getLogger(__name__)


def pretrain_backbone(detector: DeformableDetr, config: TrainConfig, *, stop: StopRequest) -> float:
    """Train the detector's backbone, in place, to classify crops by digit or as background.

    A linear classifier on the mean of C5 is trained with it and dropped. Crops and initial
    classifier depend only on `config.seed`: a run that is interrupted here starts over and ends
    with the same weights.

    Returns:
        The share of validation crops that are classified correctly.

    Raises:
        Interrupted: a stop was requested.
        LoadingFailed: a process that makes crops was killed.
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

    def to_input(crops: Tensor) -> Tensor:
        no_padding = torch.zeros(crops.shape[:3], dtype=torch.bool, device=device)
        return normalise(crops.to(device), no_padding, preprocess=config.preprocess)

    def logits(images: Tensor) -> Tensor:
        predicted: Tensor = classifier(backbone(images)[-1].mean((2, 3)))
        return predicted

    backbone.train()
    batches = work_ahead(
        partial(_train_crops, config.seed),
        range(config.pretrain_steps),
        num_workers=config.num_workers,
    )
    bar = progress_bar(batches, total=config.pretrain_steps, desc="backbone", unit=" steps")
    for step, (crops, labels) in enumerate(bar):
        stop.check()
        factor = min(1.0, (step + 1) / WARMUP_STEPS) * cosine_factor(step, config.pretrain_steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        predicted = logits(to_input(crops))
        loss = F.cross_entropy(predicted, labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            accuracy = (predicted.argmax(1).cpu() == labels).float().mean()
            bar.set_postfix(
                loss=f"{loss.item():.3f}", accuracy=f"{accuracy.item():.3f}", refresh=False
            )
    backbone.eval()
    held_out, labels = crop_batch(np.random.default_rng(config.seed), HELD_OUT_CROPS, split="val")
    with torch.no_grad():
        predicted = logits(to_input(torch.from_numpy(held_out))).argmax(1).cpu()
    share = (predicted == torch.from_numpy(labels)).float().mean().item()
    log.info("backbone pre-training: %.1f%% of validation crops classified correctly", 100 * share)
    return share


def _train_crops(seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step, which depends only on (seed, step)."""
    crops, labels = crop_batch(np.random.default_rng((seed, step)), BATCH_SIZE, split="train")
    return torch.from_numpy(crops), torch.from_numpy(labels)
