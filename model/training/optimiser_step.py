"""One optimiser step over one effective batch."""

from functools import partial

import torch
from torch import Tensor, nn

from model.config import TrainConfig
from model.data.loading import MicroBatch
from model.network.deformable_detr import DeformableDetr
from model.network.inference import normalise
from model.training.losses import LossNormalisers, compute_losses, loss_normalisers
from model.training.non_finite import NonFiniteLoss, first_bad_tensor
from model.training.training_state import TrainingState


def forward_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """bfloat16 if the configuration asks for it and the device supports it, else float32."""
    if config.precision == "fp32":
        return torch.float32
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.bfloat16 if has_bf16 else torch.float32


def take_step(
    state: TrainingState, batches: list[MicroBatch], *, config: TrainConfig, dtype: torch.dtype
) -> dict[str, float]:
    """Update the weights with one effective batch; learning rates are already set.

    Args:
        batches: run one after another, but count as one batch.

    Returns:
        Every weighted loss term, their sum as "loss", and "gradient_norm" before clipping.

    Raises:
        NonFiniteLoss: loss or gradient is NaN or infinite; no weight was changed.
    """
    state.optimizer.zero_grad()
    try:
        terms = accumulate_gradients(state.model, batches, config=config, dtype=dtype)
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        if not torch.isfinite(norm):
            raise NonFiniteLoss(_diagnose("gradient", state.model, batches, config, dtype))
    except NonFiniteLoss as error:
        progress = state.progress
        raise NonFiniteLoss(
            f"step {progress.step + 1} (epoch {progress.epoch + 1}): {error}. Nothing of this step "
            "was saved; earlier checkpoints are good. A lower learning_rate often helps"
        ) from None
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.progress.step + 1)
    state.progress.step += 1
    state.progress.step_in_epoch += 1
    return {**terms, "loss": sum(terms.values()), "gradient_norm": norm.item()}


def accumulate_gradients(
    model: DeformableDetr, batches: list[MicroBatch], *, config: TrainConfig, dtype: torch.dtype
) -> dict[str, float]:
    """Add up the gradients of a batch that comes in parts, and return its loss terms.

    The loss is divided by the matched pairs of all parts, so the result equals that of one large
    batch (except for trained batch norm and for padding).
    """
    targets = [target for _, _, part in batches for target in part]
    # A pyramid with fewer tokens than boxes would match fewer pairs; no real image has that.
    normalisers = loss_normalisers(
        targets, num_queries=config.model.num_queries, num_tokens=None, config=config.loss
    )
    sums: dict[str, Tensor] = {}
    for batch in batches:
        terms = _loss_terms(model, batch, config, dtype, normalisers)
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise NonFiniteLoss(_diagnose("loss", model, [batch], config, dtype))
        total.backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach()
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))


def _loss_terms(
    model: DeformableDetr,
    batch: MicroBatch,
    config: TrainConfig,
    dtype: torch.dtype,
    normalisers: LossNormalisers | None = None,
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    images, padding_mask = (part.to(device, non_blocking=True) for part in batch[:2])
    targets = [
        {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in t.items()}
        for t in batch[2]
    ]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        outputs = model(normalise(images, padding_mask, preprocess=config.preprocess), padding_mask)
    return compute_losses(outputs, targets, config=config.loss, normalisers=normalisers)


def _diagnose(
    what: str,
    model: DeformableDetr,
    batches: list[MicroBatch],
    config: TrainConfig,
    dtype: torch.dtype,
) -> str:
    """What is not finite, in which images, and the first bad tensor, found by a second run."""
    image_ids = [target["image_id"] for batch in batches for target in batch[2]]
    for batch in batches:
        culprit = first_bad_tensor(model, partial(_loss_terms, model, batch, config, dtype))
        if culprit is not None:
            break
    else:
        culprit = "none when the same images are run again"
    return f"{what} is not finite; image ids {image_ids}; first bad tensor: {culprit}"
