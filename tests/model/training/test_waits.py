"""How often a step makes the program wait for a GPU: only for the matching."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import LossConfig, Variant
from model.configs import tiny
from model.network.deformable_detr import DeformableDetr
from model.training.optimiser_step import take_step
from model.training.training_state import TrainingState
from tests.model.training.test_optimiser_step import EXTRA_QUERIES, make_batch, step_config
from tests.model.waits import Waits

NUM_PARTS = 2


@pytest.mark.parametrize(
    ("variant", "classification", "extra"),
    [
        (Variant.BASE, "focal", {}),
        (Variant.REFINE, "varifocal", {}),
        (Variant.TWO_STAGE, "focal", EXTRA_QUERIES),
    ],
)
def test_a_step_waits_for_each_matching_alone(
    variant: Variant, classification: Any, extra: dict[str, int]
) -> None:
    model = replace(tiny().model, variant=variant, **extra)  # type: ignore[arg-type]
    loss = LossConfig(classification=classification, class_weights=(1.0,) * model.num_classes)
    config = step_config(model, loss=loss, ema_decay=0.9)
    state = TrainingState.start(DeformableDetr(config.model).train(), config)
    batches = [make_batch(first, 2) for first in range(NUM_PARTS)]
    take_step(state, batches, config=config, dtype=torch.float32)

    with Waits() as waits:
        take_step(state, batches, config=config, dtype=torch.float32)

    of_the_host = Counter(
        {
            "losses.loss_normalisers: tolist": 1,  # counts of boxes
            "unread_step.UnreadStep.read: tolist": 1,  # of the step before, copied before this one
            "matcher._assign: numpy": waits.found["matcher._assign: numpy"],  # copied costs
            "losses._denoising_losses: nonzero": NUM_PARTS if extra else 0,  # noise is made there
        }
    )
    assert waits.found - of_the_host == {
        "matcher._costs_on_host: cpu": NUM_PARTS,  # scipy matches on the host
    }


def _clip(x: Tensor) -> None:
    x.requires_grad_().sum().backward()
    torch.nn.utils.clip_grad_norm_([x], 1.0, error_if_nonfinite=True)


KINDS: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("item", lambda x: float(x[0])),
    ("item", lambda x: bool(x.isfinite().all())),
    ("item", _clip),
    ("tolist", lambda x: x.tolist()),
    ("cpu", lambda x: x.cpu()),
    ("numpy", lambda x: x.numpy()),
    ("to", lambda x: x.to(x.device)),
    ("tensor", lambda x: torch.tensor([1.0], device=x.device)),
    ("new_tensor", lambda x: x.new_tensor([1.0])),
    ("nonzero", lambda x: x.nonzero()),
    ("mask", lambda x: x[x > 0]),
    ("mask", lambda x: x.__setitem__(x > 0, 0.0)),
    ("list", lambda x: x[[0, 1]]),
    ("masked_select", lambda x: x.masked_select(x > 0)),
    ("repeat_interleave", lambda x: x.repeat_interleave(torch.tensor([1, 2]))),
    ("equal", lambda x: torch.equal(x, x)),
]


@pytest.mark.parametrize(("kind", "wait"), KINDS)
def test_every_kind_of_wait_is_found(kind: str, wait: Callable[[Tensor], Any]) -> None:
    with Waits() as waits:
        wait(torch.ones(2))

    assert [name.split(": ")[1] for name in waits.found] == [kind]


def test_what_a_gpu_does_by_itself_is_no_wait() -> None:
    x = torch.ones(3)

    with Waits() as waits:
        x.to(x.device, non_blocking=True).to(torch.float64)[torch.tensor([0, 2])].sum().sqrt()
        torch.where(x > 0, x, 0.0)

    assert waits.found == {}
