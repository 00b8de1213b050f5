"""Backbone pre-training on small crops, which replaces ImageNet weights in the demo."""

import logging
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TrainConfig
from model.data.digits import BACKGROUND, Split, crop_batch
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
    crop_classifier = _CropClassifier(detector, config)
    backbone = detector.backbone
    parameters = [p for p in crop_classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    batches = work_ahead(
        partial(_train_crops, config.seed),
        range(config.pretrain_steps),
        num_workers=config.num_workers,
    )
    backbone.train()
    bar = progress_bar(batches, total=config.pretrain_steps, desc="backbone", unit=" steps")
    for step, (crops, labels) in enumerate(bar):
        stop.check()
        factor = min(1.0, (step + 1) / WARMUP_STEPS) * cosine_factor(step, config.pretrain_steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        logits = crop_classifier(crops)
        loss = F.cross_entropy(logits, labels.to(logits.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            accuracy = _share_correct(logits, labels)
            bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{accuracy:.3f}", refresh=False)
    backbone.eval()
    crops, labels = _crops(np.random.default_rng(config.seed), HELD_OUT_CROPS, split="val")
    with torch.no_grad():
        share = _share_correct(crop_classifier(crops), labels)
    log.info("backbone pre-training: %.1f%% of validation crops classified correctly", 100 * share)
    return share


class _CropClassifier(nn.Module):
    """The detector's backbone, and a linear classifier on the mean of C5."""

    def __init__(self, detector: DeformableDetr, config: TrainConfig) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.preprocess = config.preprocess
        self.head = nn.Linear(self.backbone.out_channels[-1], BACKGROUND + 1)
        generator = torch.Generator().manual_seed(config.seed)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.head.to(next(detector.parameters()).device)

    def forward(self, crops: Tensor) -> Tensor:
        """Logits (B, 11) of uint8 crops (B, H, W, 3), which may be on another device."""
        crops = crops.to(self.head.weight.device)
        no_padding = torch.zeros(crops.shape[:3], dtype=torch.bool, device=crops.device)
        images = normalise(crops, no_padding, preprocess=self.preprocess)
        logits: Tensor = self.head(self.backbone(images)[-1].mean((2, 3)))
        return logits


def _share_correct(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1).cpu() == labels).float().mean().item()


def _train_crops(seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step, which depends only on (seed, step)."""
    return _crops(np.random.default_rng((seed, step)), BATCH_SIZE, split="train")


def _crops(rng: np.random.Generator, count: int, *, split: Split) -> tuple[Tensor, Tensor]:
    crops, labels = crop_batch(rng, count, split=split)
    return torch.from_numpy(crops), torch.from_numpy(labels)
