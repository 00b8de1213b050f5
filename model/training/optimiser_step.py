"""One optimiser step over one effective batch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model.config import TrainConfig
from model.data.collate import MicroBatch
from model.distributed import (
    agreed,
    alone,
    gather,
    num_processes,
    process_index,
    sum_in_place,
)
from model.network.deformable_detr import DeformableDetr
from model.network.inference import normalise
from model.training.denoising import add_noise
from model.training.losses import LossNormalisers, compute_losses, loss_names, loss_normalisers
from model.training.non_finite import NonFiniteLoss, first_bad_tensor
from model.training.step_times import Lap, ignore
from model.training.training_state import TrainingState

# Of training without loss scaling.
UNSCALED = torch.amp.GradScaler("cpu", enabled=False)


class LossTerms(NamedTuple):
    """The loss terms of a step, in the order of `loss_names`, on the device.

    parts: (P, T), of each forward pass of this process. total: (T,), of those of all processes.
    """

    parts: Tensor
    total: Tensor


class _ScaleTooLarge(Exception):
    """Gradients of the scaled loss overflowed."""


def take_step(
    state: TrainingState,
    batches: list[MicroBatch],
    *,
    config: TrainConfig,
    dtype: torch.dtype,
    lap: Lap = ignore,
) -> dict[str, float]:
    """Update the weights with one effective batch; learning rates are already set.

    Args:
        batches: this process's share, run one after another. Those of all processes count as one.
        lap: is told when a part of the step ends.

    Returns:
        Every weighted loss term, their sum as "loss", and "gradient_norm" before clipping.

    Raises:
        NonFiniteLoss: loss or gradient is NaN or infinite; no weight was changed.
        PeerFailed: another process has ended.
    """
    progress = state.progress
    try:
        values = _set_gradients(state, batches, config, dtype, lap)
    except NonFiniteLoss as error:
        raise NonFiniteLoss(
            f"step {progress.step + 1} (epoch {progress.epoch + 1}): {error}. Nothing of this step "
            "was saved; earlier checkpoints are good. A lower learning_rate often helps"
        ) from None
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update(progress.step + 1)
    progress.step += 1
    progress.step_in_epoch += 1
    progress.loss_sum += values["loss"]
    lap("optimiser")
    return values


def _set_gradients(
    state: TrainingState,
    batches: list[MicroBatch],
    config: TrainConfig,
    dtype: torch.dtype,
    lap: Lap,
) -> dict[str, float]:
    """Set the gradients, clipped; returns what `take_step` does.

    If the gradients of a scaled loss overflow, the scale is halved and the same batch is run again.
    """
    while True:
        torch.manual_seed(_dropout_seed(config.seed, state.progress.step))
        state.optimizer.zero_grad()
        try:
            with _buffers_kept_on_failure(state.model):
                terms = accumulate_gradients(
                    state.model,
                    batches,
                    config=config,
                    dtype=dtype,
                    step=state.progress.step,
                    scaler=state.scaler,
                    lap=lap,
                )
                norm = _clip_gradients(state, config)
                return _read_finite(terms, norm, state, batches, config, dtype)
        except _ScaleTooLarge:
            state.scaler.update()


def _clip_gradients(state: TrainingState, config: TrainConfig) -> Tensor:
    """Clip the gradients, freed of the loss scale, and return their norm before."""
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, config.clip_norm)


def _read_finite(
    terms: LossTerms,
    norm: Tensor,
    state: TrainingState,
    batches: list[MicroBatch],
    config: TrainConfig,
    dtype: torch.dtype,
) -> dict[str, float]:
    """The figures of a step, before it changes a weight: they must be finite.

    Beside the matching of each forward pass, this is where the host waits for a GPU.
    """
    *values, gradient_norm = torch.cat((terms.total, norm[None])).tolist()
    diagnose = partial(
        _diagnose, model=state.model, config=config, dtype=dtype, step=state.progress.step
    )
    if not all(map(math.isfinite, values)):
        bad = [batch for part, batch in zip(terms.parts.tolist(), batches, strict=True)
               if not all(map(math.isfinite, part))]  # fmt: skip
        raise agreed(NonFiniteLoss(diagnose("loss", batches=bad[:1])))
    if not math.isfinite(gradient_norm):
        if state.scaler.is_enabled() and state.scaler.get_scale() > 1:
            raise _ScaleTooLarge
        raise agreed(NonFiniteLoss(diagnose("gradient", batches=batches)))
    named = dict(zip(loss_names(config.model), values, strict=True))
    return {**named, "loss": sum(values), "gradient_norm": gradient_norm}


@contextmanager
def _buffers_kept_on_failure(model: nn.Module) -> Iterator[None]:
    """Undo what forward passes changed (statistics of trained batch norm) if the step fails."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    except BaseException:
        for buffer, values in zip(model.buffers(), before, strict=True):
            buffer.copy_(values)
        raise


def _dropout_seed(seed: int, step: int) -> int:
    """Depends on nothing else, so that a step is the same after an interruption."""
    entropy = np.random.SeedSequence([seed, step, process_index()])
    return int(entropy.generate_state(1, np.uint64)[0])


def accumulate_gradients(
    model: DeformableDetr,
    batches: list[MicroBatch],
    *,
    config: TrainConfig,
    dtype: torch.dtype,
    step: int = 0,
    scaler: torch.amp.GradScaler = UNSCALED,
    lap: Lap = ignore,
) -> LossTerms:
    """Add up the gradients of a batch that comes in parts, and return its loss terms.

    The loss is divided by the matched pairs of all parts of all processes, and gradients and terms
    are summed over them, so the result equals that of one large batch (except that trained batch
    norm has the statistics of a part, over all processes; and for padding, if it is published).
    """
    targets = [target for _, _, part in batches for target in part]
    # A pyramid with fewer tokens than boxes would match fewer pairs; no real image has that.
    normalisers = loss_normalisers(
        targets,
        num_queries=config.model.num_queries,
        num_tokens=None,
        config=config.loss,
        num_one_to_many=config.model.one_to_many_queries,
        num_denoising=config.model.denoising_queries,
    )
    names = loss_names(config.model)
    totals = torch.zeros(len(batches), len(names), device=next(model.parameters()).device)
    for total, batch in zip(totals, batches, strict=True):
        if not batch[2]:
            _follow_statistics(model, batch, config)
            continue
        terms = _loss_terms(model, batch, config, dtype, step, normalisers, lap)
        values = torch.stack([terms[name] for name in names])
        scaler.scale(values.sum()).backward()
        lap("backward")
        total.copy_(values.detach())
    terms_of_all = totals.sum(0)
    sum_gradients(model, terms_of_all)
    return LossTerms(totals, terms_of_all)


def _follow_statistics(model: DeformableDetr, batch: MicroBatch, config: TrainConfig) -> None:
    """Run no image through the backbone, where other processes wait for this one's statistics."""
    if not config.model.train_batch_norm:
        return
    device = next(model.parameters()).device
    images, padding_mask = (part.to(device, non_blocking=True) for part in batch[:2])
    maps = model.backbone(normalise(images, padding_mask, preprocess=config.preprocess))
    total = torch.stack([values.sum() for values in maps]).sum()
    if total.requires_grad:
        total.backward()


def sum_gradients(model: nn.Module, terms: Tensor) -> None:
    """Sum gradients and loss terms (T,) over all processes, in place and in one message.

    A parameter that has no gradient in any process keeps none: the optimiser leaves it alone.
    """
    if num_processes() == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    used = terms.new_tensor([p.grad is not None for p in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    message = torch.cat([terms, used, *(gradient.flatten() for gradient in gradients)])
    sum_in_place(message)
    sizes = [len(terms), len(used), *(p.numel() for p in parameters)]
    summed_terms, summed_used, *sums = message.split(sizes)
    terms.copy_(summed_terms)
    for parameter, is_used, values in zip(parameters, summed_used.tolist(), sums, strict=True):
        parameter.grad = values.view_as(parameter) if is_used else None


def _loss_terms(
    model: DeformableDetr,
    batch: MicroBatch,
    config: TrainConfig,
    dtype: torch.dtype,
    step: int,
    normalisers: LossNormalisers | None = None,
    lap: Lap = ignore,
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    images, padding_mask = (part.to(device, non_blocking=True) for part in batch[:2])
    targets = [
        {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in t.items()}
        for t in batch[2]
    ]
    noisy = None
    if num_queries := config.model.denoising_queries:
        noisy = add_noise(
            batch[2],
            num_queries=num_queries,
            num_classes=config.model.num_classes,
            config=config.loss,
            seed=(config.seed, step),
        ).to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        pixels = normalise(images, padding_mask, preprocess=config.preprocess)
        outputs = model(pixels, padding_mask, noisy)
    lap("forward")
    terms = compute_losses(
        outputs, targets, config=config.loss, normalisers=normalisers, noisy=noisy
    )
    lap("loss")
    return terms


def _diagnose(
    what: str,
    *,
    model: DeformableDetr,
    batches: list[MicroBatch],
    config: TrainConfig,
    dtype: torch.dtype,
    step: int,
) -> str:
    """What is not finite, in which images of which process, and the first bad tensor.

    It is found by a second run of the batches.
    """
    culprit = None
    with alone():
        for batch in batches:
            if not batch[2]:  # nothing was run in this process
                continue
            culprit = culprit or first_bad_tensor(
                model, partial(_loss_terms, model, batch, config, dtype, step)
            )
    image_ids = [target["image_id"] for batch in batches for target in batch[2]]
    found = gather((image_ids, culprit))
    culprits = [culprit for _, culprit in found if culprit is not None]
    return (
        f"{what} is not finite; image ids {[i for ids, _ in found for i in ids]}; first bad "
        f"tensor: {culprits[0] if culprits else 'none when the same images are run again'}"
    )
