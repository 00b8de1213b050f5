"""Parameter groups, learning rates and the moving average."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from model.configs import base, demo, finetune, refine, tiny, two_stage
from model.network.deformable_detr import DeformableDetr
from model.training.schedule import (
    MovingAverage,
    learning_rate,
    learning_rate_doubts,
    make_optimizer,
    schedule_factor,
    set_learning_rate,
)


def test_every_parameter_that_trains_has_its_rate_and_weight_decay() -> None:
    config = replace(tiny(), backbone_lr_factor=0.5, offsets_lr_factor=0.25)
    model = DeformableDetr(config.model)
    rate = config.learning_rate

    optimizer = make_optimizer(model.named_parameters(), config)

    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: group_of[id(p)]["base_lr"] for name, p in trained.items()}
    assert len(group_of) == len(trained)
    assert found["backbone.layer2.0.conv1.weight"] == rate * 0.5
    assert found["encoder.layers.0.self_attn.sampling_offsets.weight"] == rate * 0.25
    assert found["decoder.layers.1.cross_attn.sampling_offsets.bias"] == rate * 0.25
    assert found["queries.reference_points.weight"] == rate * 0.25
    assert found["encoder.layers.0.norm1.bias"] == rate
    assert found["input_proj.0.conv.weight"] == rate
    assert {group["weight_decay"] for group in optimizer.param_groups} == {config.weight_decay}


def test_the_step_schedule_drops_after_the_epochs_it_names() -> None:
    config = replace(tiny(), schedule="step", lr_drop_epochs=(2, 3), epochs=4)

    factors = [schedule_factor(step, 10, config=config) for step in (0, 19, 20, 29, 30, 39)]

    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_cosine_schedule_warms_up_and_ends_at_zero() -> None:
    config = replace(tiny(), schedule="cosine", warmup_steps=10, epochs=11)

    factors = [schedule_factor(step, 10, config=config) for step in (0, 4, 9, 10, 60, 110)]

    assert factors == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0])


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_by_time_at_an_even_pace_the_schedule_is_the_same(
    schedule: Literal["step", "cosine"],
) -> None:
    config = replace(tiny(), schedule=schedule, warmup_steps=10, epochs=10, lr_drop_epochs=(4, 8))

    by_steps = [schedule_factor(step, 8, config=config) for step in range(80)]
    by_time = [schedule_factor(step, 8, config=config, used_share=step / 80) for step in range(80)]

    assert by_time == pytest.approx(by_steps)


def test_the_rate_of_each_group_is_scaled() -> None:
    config = tiny()
    optimizer = make_optimizer(DeformableDetr(config.model).named_parameters(), config)

    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.1)

    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.1 * group["base_lr"])


@pytest.mark.parametrize("trained", ["", "backbone", "sampling_offsets"])
@pytest.mark.parametrize("factor", [0.0, 0.1, 3.0])
def test_the_rate_that_is_told_is_that_without_a_separate_factor(
    trained: str, factor: float
) -> None:
    config = replace(tiny(), backbone_lr_factor=factor, offsets_lr_factor=factor)
    named = DeformableDetr(config.model).named_parameters()
    optimizer = make_optimizer([one for one in named if trained in one[0]], config)

    set_learning_rate(optimizer, 0.25)

    is_still = bool(trained) and factor == 0
    expected = 0.0 if is_still else 0.25 * config.learning_rate
    assert learning_rate(optimizer, config) == pytest.approx(expected)


@pytest.mark.parametrize("config", [base(), refine(), two_stage(), finetune(), demo()])
def test_our_recipes_raise_no_doubt(config) -> None:
    assert list(learning_rate_doubts(config, 1000)) == []


def test_a_small_batch_at_the_published_rate_is_doubtful() -> None:
    [doubt] = learning_rate_doubts(replace(base(), accumulation_steps=1), 1000)

    assert "learning_rate 0.0002 with an effective batch of 2" in doubt
    assert "expected 1.3e-05 to 5e-05" in doubt


@pytest.mark.parametrize(
    ("changes", "steps_per_epoch", "said"),
    [
        ({"epochs": 10}, 100, "lr_drop_epochs 10: the run has 10 epochs, so the learning rate is"),
        (
            {"warmup_steps": 201},
            20,
            "warmup_steps 201: the learning rate is still rising after 200",
        ),
        ({"lr_drop_epochs": (), "warmup_steps": 241}, 20, "after 240 steps"),
        ({"schedule": "cosine", "warmup_steps": 241}, 20, "never becomes 5e-05; lower"),
    ],
)
def test_a_schedule_longer_than_the_run_is_doubtful(
    changes: dict[str, Any], steps_per_epoch: int, said: str
) -> None:
    [doubt] = learning_rate_doubts(replace(finetune(), **changes), steps_per_epoch)

    assert said in doubt


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup_steps": 200},
        {"warmup_steps": 300, "minutes": 60.0},
        {"schedule": "cosine", "epochs": 10},
        {"lr_drop_epochs": ()},
    ],
)
def test_a_schedule_within_the_run_is_not(changes: dict[str, Any]) -> None:
    assert list(learning_rate_doubts(replace(finetune(), **changes), 20)) == []


def test_the_average_follows_slowly_and_takes_no_gradient() -> None:
    model = DeformableDetr(tiny().model)
    average = MovingAverage(model, decay=0.75)
    with torch.no_grad():
        model.level_embed.fill_(4.0)
        average.model.level_embed.fill_(0.0)

    average.update(num_steps=1000)

    torch.testing.assert_close(average.model.level_embed, torch.ones_like(model.level_embed))
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not average.model.training


def test_the_average_forgets_the_start_quickly() -> None:
    model = DeformableDetr(tiny().model)
    average = MovingAverage(model, decay=0.999)
    with torch.no_grad():
        model.level_embed.fill_(11.0)
        average.model.level_embed.fill_(0.0)

    average.update(num_steps=1)

    torch.testing.assert_close(average.model.level_embed, torch.full_like(model.level_embed, 9.0))
