"""Backbone pre-training on small crops: what stands for ImageNet weights in the demo."""

import logging

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from model.config import TrainConfig
from model.data.digits import BACKGROUND, crop_batch
from model.data.loading import shield_worker
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


def pretrain_backbone(detector: DeformableDetr, config: TrainConfig, stop: StopRequest) -> float:
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

    def to_input(crops: Tensor) -> Tensor:
        no_padding = torch.zeros(crops.shape[:3], dtype=torch.bool, device=device)
        return normalise(crops.to(device), no_padding, preprocess=config.preprocess)

    def logits(images: Tensor) -> Tensor:
        predicted: Tensor = classifier(backbone(images)[-1].mean((2, 3)))
        return predicted

    backbone.train()
    batches = DataLoader(
        _CropBatches(config),
        batch_size=None,  # an item is a batch
        num_workers=config.num_workers,
        worker_init_fn=shield_worker,
        generator=torch.Generator(),  # or it would draw a seed from the run's random state
    )
    bar = progress_bar(batches, desc="backbone", unit=" steps")
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
    log.info("backbone pre-training: %.1f%% of validation crops named rightly", 100 * share)
    return share


class _CropBatches(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Batch by step; (seed, step) alone decides what is in it."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.pretrain_steps

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        if step >= len(self):
            raise IndexError(step)
        return crop_batch(
            np.random.default_rng((self.config.seed, step)), BATCH_SIZE, split="train"
        )
