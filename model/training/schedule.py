"""Parameter groups, learning rates and the moving average of weights."""

import copy
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from model.config import TrainConfig
from model.network.deformable_detr import DeformableDetr

# The published recipe: 2e-4 for 32 images per step.
RECIPE_LEARNING_RATE = 2e-4
RECIPE_BATCH = 32
RECIPE_HIDDEN_DIM = 256
DROP_FACTOR = 0.1


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in groups of equal learning rate.

    Each group keeps its full rate under "base_lr"; `set_learning_rate` scales it.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups.setdefault(_rate_factor(name, config), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "base_lr": config.learning_rate * factor}
            for factor, parameters in groups.items()
        ],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,  # also for norms and biases, as published
        fused=True,
    )


def _rate_factor(name: str, config: TrainConfig) -> float:
    if "backbone" in name:
        return config.backbone_lr_factor
    if "sampling_offsets" in name or "reference_points" in name:
        return config.offsets_lr_factor
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` times its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig) -> float:
    """The current rate of parameters that have no separate factor, also if none are trained."""
    group = max(optimizer.param_groups, key=lambda one: float(one["base_lr"]))
    return config.learning_rate * float(group["lr"]) / (float(group["base_lr"]) or 1.0)


def step_unless(is_bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step with a fused optimizer, which changes nothing if `is_bad` is 1.

    Args:
        is_bad: (), float32, on the device. Loss scaling tells torch's fused optimizers so, too.
    """
    optimizer.found_inf = is_bad  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def schedule_factor(
    step: int, steps_per_epoch: int, *, config: TrainConfig, used_share: float | None = None
) -> float:
    """The fraction of the full learning rate at a step.

    Args:
        step: counted from 0 over the run.
        used_share: how much of its time the run has used, 0 to 1, if its end is set by time: the
            schedule of all epochs is then stretched to fit. None if its end is set by epochs.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    num_steps = config.epochs * steps_per_epoch
    position = step if used_share is None else used_share * num_steps
    if config.schedule == "step":
        num_drops = sum(position >= epoch * steps_per_epoch for epoch in config.lr_drop_epochs)
        return warmup * DROP_FACTOR**num_drops
    return warmup * cosine_factor(position - config.warmup_steps, num_steps - config.warmup_steps)


def cosine_factor(step: float, num_steps: int) -> float:
    """Half a cosine from 1 at step 0 to 0 at `num_steps`; 1 before."""
    progress = min(1.0, max(0.0, step / max(1, num_steps)))
    return 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate_doubts(config: TrainConfig, steps_per_epoch: int) -> Iterator[str]:
    """Warnings if the rate does not fit the effective batch, or its schedule the run's length."""
    if (doubt := _rate_doubt(config)) is not None:
        yield doubt
    drops = sorted(config.lr_drop_epochs) if config.schedule == "step" else []
    if late := [epoch for epoch in drops if epoch >= config.epochs]:
        yield (
            f"lr_drop_epochs {', '.join(map(str, late))}: the run has {config.epochs} epochs, so "
            "the learning rate is not dropped then; name an earlier epoch"
        )
    last = min([*drops, config.epochs]) * steps_per_epoch
    if config.warmup_steps > last and config.minutes is None:
        yield (
            f"warmup_steps {config.warmup_steps}: the learning rate is still rising after {last} "
            f"steps, when it should drop or the run ends, and never becomes "
            f"{config.learning_rate:g}; lower warmup_steps, or raise epochs"
        )


def _rate_doubt(config: TrainConfig) -> str | None:
    """A warning if learning rate and effective batch do not fit together, else None.

    Only models of the published width are judged: their rate should be between linear and
    square-root scaling of the published one; a factor of 1.5 beyond either is doubtful.
    """
    if config.model.hidden_dim != RECIPE_HIDDEN_DIM:
        return None
    batch = config.batch_size * config.accumulation_steps
    scale = batch / RECIPE_BATCH
    low, high = sorted((RECIPE_LEARNING_RATE * scale, RECIPE_LEARNING_RATE * math.sqrt(scale)))
    if low / 1.5 <= config.learning_rate <= high * 1.5:
        return None
    return (
        f"learning_rate {config.learning_rate:g} with an effective batch of {batch} "
        f"(batch_size {config.batch_size} x accumulation_steps {config.accumulation_steps}) is "
        f"off the published recipe ({RECIPE_LEARNING_RATE:g} at {RECIPE_BATCH}): "
        f"expected {low:.2g} to {high:.2g}"
    )


class MovingAverage:
    """Exponential moving average of a model's weights and batch norm statistics, as a model.

    The average warms up, so that it does not remember the random start: after n steps the
    decay is at most (1 + n) / (10 + n).
    """

    def __init__(self, model: DeformableDetr, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self._averages = list(self.model.state_dict().values())
        self._currents = list(model.state_dict().values())

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        """Include the weights after `num_steps` optimiser steps."""
        weight = 1 - min(self.decay, (1 + num_steps) / (10 + num_steps))
        torch._foreach_lerp_(self._averages, self._currents, weight)
