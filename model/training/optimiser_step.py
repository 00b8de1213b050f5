"""One optimiser step over one effective batch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

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
from model.training.schedule import step_unless
from model.training.step_times import Lap, ignore
from model.training.training_state import TrainingState
from model.training.unread_step import (
    LossTerms,
    Report,
    StepFigures,
    UnreadStep,
    ignore_figures,
)

# Of training without loss scaling.
UNSCALED = torch.amp.GradScaler("cpu", enabled=False)


def take_step(
    state: TrainingState,
    batches: list[MicroBatch],
    *,
    config: TrainConfig,
    dtype: torch.dtype,
    lap: Lap = ignore,
    report: Report = ignore_figures,
) -> None:
    """Update the weights with one effective batch; learning rates are already set.

    The device leaves the weights as they are if a figure of the step is not finite. The host reads
    the figures in the next call, or in `finish_step`: it waits for a GPU only where it matches (and
    in float16 for the norm, as gradients that overflow are computed again with half the scale).

    Args:
        batches: this process's share, run one after another. Those of all processes count as one.
        lap: is told when a part of the step ends.
        report: is given the step's figures when they have been read.

    Raises:
        NonFiniteLoss: loss or gradient of the step before was NaN or infinite; neither step changed
            a weight of the model, but `state.average` may be spoilt.
        PeerFailed: another process has ended.
    """
    progress, model = state.progress, state.model
    buffers = [buffer.clone() for buffer in model.buffers()]
    with _buffers_restored_on_failure(model, buffers):
        terms, norm = _set_gradients(state, batches, config, dtype, buffers, lap)
    finish_step(state)
    unread = UnreadStep(
        progress.step + 1,
        batches,
        figures=torch.cat((terms.total, norm[None])),
        part_terms=terms.parts,
        config=config,
        dtype=dtype,
        buffers=buffers,
        report=report,
    )
    step_unless(unread.is_bad, state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update(unread.step)
    state.unread = unread
    progress.step += 1
    progress.step_in_epoch += 1
    lap("optimiser")


def finish_step(state: TrainingState) -> None:
    """Read the figures of the last step, and count its loss, unless that has been done.

    Needed before the state is saved or evaluated.

    Raises:
        NonFiniteLoss, PeerFailed: see `take_step`.
    """
    unread, state.unread = state.unread, None
    if unread is None:
        return
    with _buffers_restored_on_failure(state.model, unread.buffers):
        figures = _read_finite(unread, state)
    state.progress.loss_sum += figures.values["loss"]
    unread.report(figures)


def _set_gradients(
    state: TrainingState,
    batches: list[MicroBatch],
    config: TrainConfig,
    dtype: torch.dtype,
    buffers: list[Tensor],
    lap: Lap,
) -> tuple[LossTerms, Tensor]:
    """Set the gradients, clipped; returns the loss terms, and the norm before clipping.

    If the gradients of a scaled loss overflow, the scale is halved and the same batch is run again,
    from the same buffers.
    """
    while True:
        torch.manual_seed(_dropout_seed(config.seed, state.progress.step))
        state.optimizer.zero_grad()
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
        if not _is_scale_too_large(state.scaler, terms, norm):
            return terms, norm
        state.scaler.update()
        _restore_buffers(state.model, buffers)


def _is_scale_too_large(scaler: torch.amp.GradScaler, terms: LossTerms, norm: Tensor) -> bool:
    """Whether the gradients overflowed, and might not without the loss scale."""
    if not scaler.is_enabled() or norm.isfinite():
        return False
    return scaler.get_scale() > 1 and bool(terms.total.isfinite().all())


def _clip_gradients(state: TrainingState, config: TrainConfig) -> Tensor:
    """Clip the gradients, freed of the loss scale, and return their norm before."""
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, config.clip_norm)


def _read_finite(unread: UnreadStep, state: TrainingState) -> StepFigures:
    """The figures of a step, which must be finite."""
    *values, gradient_norm = unread.read()
    config = unread.config
    if not all(map(math.isfinite, values)):
        bad = [batch for part, batch in zip(unread.part_terms.tolist(), unread.batches, strict=True)
               if not all(map(math.isfinite, part))]  # fmt: skip
        raise _non_finite("loss", bad[:1], unread=unread, state=state)
    if not math.isfinite(gradient_norm):
        raise _non_finite("gradient", unread.batches, unread=unread, state=state)
    named = dict(zip(loss_names(config.model), values, strict=True))
    named |= {"loss": sum(values), "gradient_norm": gradient_norm}
    return StepFigures(unread.step, named)


@contextmanager
def _buffers_restored_on_failure(model: nn.Module, before: list[Tensor]) -> Iterator[None]:
    """Undo what forward passes changed (statistics of trained batch norm) if the step fails."""
    try:
        yield
    except BaseException:
        _restore_buffers(model, before)
        raise


def _restore_buffers(model: nn.Module, before: list[Tensor]) -> None:
    for buffer, values in zip(model.buffers(), before, strict=True):
        buffer.copy_(values)


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
    uses = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    sum_in_place(uses)  # between hosts, so that no GPU is waited for
    used = [p for p, count in zip(parameters, uses.tolist(), strict=True) if count]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
    message = torch.cat([terms, *(gradient.flatten() for gradient in gradients)])
    sum_in_place(message)
    summed_terms, *sums = message.split([len(terms), *(p.numel() for p in used)])
    terms.copy_(summed_terms)
    for parameter, values in zip(used, sums, strict=True):
        parameter.grad = values.view_as(parameter)


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


def _non_finite(
    what: str, batches: list[MicroBatch], *, unread: UnreadStep, state: TrainingState
) -> Exception:
    """The error to raise: what is not finite, in which images, and the first bad tensor.

    That is found by a second run of the batches, which are those of this process.
    """
    config, step = unread.config, unread.step - 1
    culprit = None
    with alone():
        for batch in batches:
            if not batch[2]:  # nothing was run in this process
                continue
            culprit = culprit or first_bad_tensor(
                state.model,
                partial(_loss_terms, state.model, batch, config, unread.dtype, step),
            )
    image_ids = [target["image_id"] for batch in batches for target in batch[2]]
    found = gather((image_ids, culprit))
    culprits = [culprit for _, culprit in found if culprit is not None]
    return agreed(
        NonFiniteLoss(
            f"step {unread.step} (epoch {state.progress.epoch + 1}): {what} is not finite; image "
            f"ids {[i for ids, _ in found for i in ids]}; first bad tensor: "
            f"{culprits[0] if culprits else 'none when the same images are run again'}. Nothing of "
            "this step was saved; earlier checkpoints are good. A lower learning_rate often helps"
        )
    )
