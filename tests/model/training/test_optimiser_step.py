"""One optimiser step: accumulation, precision, and the diagnosis of a bad one."""

import copy
from dataclasses import replace

import pytest
import torch

from model.config import LossConfig, ModelConfig, TrainConfig, Variant
from model.configs import tiny
from model.network.deformable_detr import DeformableDetr
from model.training.losses import loss_names
from model.training.non_finite import NonFiniteLoss
from model.training.optimiser_step import accumulate_gradients, finish_step, take_step
from model.training.precision import compile_backbone, forward_dtype
from model.training.schedule import make_optimizer
from model.training.training_state import TrainingState
from model.training.unread_step import StepFigures

CPU = torch.device("cpu")


def step_config(model: ModelConfig | None = None, **changes) -> TrainConfig:
    model = replace(model or tiny().model, dropout=0.0)
    return replace(tiny(), model=model, **changes)


def make_batch(first: int, size: int):
    """Images `first` .. `first + size - 1` of an endless list, all of one size, 0 to 3 boxes."""
    images, targets = [], []
    for image_id in range(first, first + size):
        generator = torch.Generator().manual_seed(image_id)
        images.append(torch.randint(0, 256, (48, 64, 3), generator=generator, dtype=torch.uint8))
        count = image_id % 4
        targets.append(
            {
                "labels": torch.randint(0, 3, (count,), generator=generator),
                "boxes": 0.3 + 0.3 * torch.rand(count, 4, generator=generator),
                "size": torch.tensor([48, 64]),
                "image_id": image_id,
            }
        )
    return torch.stack(images), torch.zeros(size, 48, 64, dtype=torch.bool), targets


def loss_terms(
    model: DeformableDetr, batches, config: TrainConfig, dtype: torch.dtype
) -> dict[str, float]:
    terms = accumulate_gradients(model, batches, config=config, dtype=dtype)
    return dict(zip(loss_names(config.model), terms.total.tolist(), strict=True))


def step_once(
    state: TrainingState, batches, config: TrainConfig, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Take a step and read its figures."""
    found: list[StepFigures] = []
    take_step(state, batches, config=config, dtype=dtype, report=found.append)
    finish_step(state)
    return found[0].values


def gradients(config: TrainConfig, batches) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = DeformableDetr(config.model).train()
    terms = loss_terms(model, batches, config, torch.float32)
    return terms, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


EXTRA_QUERIES = {"one_to_many_queries": 6, "denoising_queries": 8}


@pytest.mark.parametrize(
    ("variant", "extra"),
    [*((variant, {}) for variant in Variant), (Variant.TWO_STAGE, EXTRA_QUERIES)],
)
def test_four_parts_of_two_give_the_gradients_of_one_batch_of_eight(
    variant: Variant, extra: dict[str, int]
) -> None:
    model = replace(tiny().model, variant=variant, **extra)  # type: ignore[arg-type]
    config = step_config(model, loss=LossConfig(encoder_matches=2))

    terms, whole = gradients(config, [make_batch(0, 8)])
    parts_terms, parts = gradients(config, [make_batch(first, 2) for first in (0, 2, 4, 6)])

    assert parts.keys() == whole.keys()
    assert parts_terms == pytest.approx(terms, rel=1e-4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_a_step_changes_what_trains_and_counts() -> None:
    config = step_config(ema_decay=0.5)
    model = DeformableDetr(config.model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = TrainingState.start(model, config)

    values = step_once(state, [make_batch(1, 2)], config)

    terms = {name: value for name, value in values.items() if "loss_" in name}
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert values["loss"] == pytest.approx(sum(terms.values()))
    assert values["gradient_norm"] > 0
    assert state.progress.step == state.progress.step_in_epoch == 1
    assert "backbone.conv1.weight" not in changed  # frozen
    assert {"backbone.layer2.0.conv1.weight", "class_heads.0.weight"} <= changed


def test_gradients_of_an_earlier_step_do_not_count() -> None:
    config = step_config(learning_rate=1e-12)
    model = DeformableDetr(config.model).train()
    state = TrainingState.start(model, config)
    batches = [make_batch(1, 2)]

    first, second = (step_once(state, batches, config) for _ in range(2))

    assert second["gradient_norm"] == pytest.approx(first["gradient_norm"], rel=1e-4)


def test_a_bad_weight_is_named_and_nothing_is_changed() -> None:
    config = step_config()
    model = DeformableDetr(config.model).train()
    state = TrainingState.start(model, config)
    with torch.no_grad():
        model.get_parameter("encoder.layers.0.norm1.weight")[3] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with pytest.raises(NonFiniteLoss) as error:
        step_once(state, [make_batch(0, 2), make_batch(2, 2)], config)

    assert "step 1 (epoch 1): loss is not finite; image ids [0, 1]" in str(error.value)
    assert "first bad tensor: weight encoder.layers.0.norm1.weight (" in str(error.value)
    assert ": 1 of " in str(error.value)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_the_first_module_to_overflow_is_named() -> None:
    config = step_config()
    model = DeformableDetr(config.model).train()
    state = TrainingState.start(model, config)
    with torch.no_grad():
        model.get_parameter("input_proj.1.conv.weight").fill_(3e38)

    with pytest.raises(NonFiniteLoss, match=r"output of input_proj\.1\.conv \(Conv2d\)"):
        step_once(state, [make_batch(0, 2)], config)


def test_a_bad_gradient_names_the_batch_it_comes_from() -> None:
    config = step_config()
    model = DeformableDetr(config.model).train()
    state = TrainingState.start(model, config)
    model.level_embed.register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(NonFiniteLoss, match=r"gradient is not finite.*gradient of level_embed"):
        step_once(state, [make_batch(0, 2)], config)


def test_a_bad_step_is_told_by_the_next_one_and_neither_changes_a_weight() -> None:
    """Statistics of trained batch norm and the steps that AdamW counts are among what stays."""
    config = step_config()
    config = replace(config, model=replace(config.model, train_batch_norm=True))
    state = TrainingState.start(DeformableDetr(config.model).train(), config)
    step_once(state, [make_batch(1, 3)], config)
    before = copy.deepcopy((state.model.state_dict(), state.optimizer.state_dict()))
    hook = state.model.level_embed.register_hook(lambda gradient: gradient * float("nan"))
    bad, good = make_batch(1, 2), make_batch(5, 2)

    take_step(state, [bad], config=config, dtype=torch.float32)
    hook.remove()
    with pytest.raises(NonFiniteLoss) as error:
        take_step(state, [good], config=config, dtype=torch.float32)

    assert (
        "step 2 (epoch 1): gradient is not finite; image ids [1, 2]; first bad tensor: none "
        in (str(error.value))
    )
    after = state.model.state_dict(), state.optimizer.state_dict()
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.skipif(
    forward_dtype(replace(tiny(), precision="bf16"), CPU) != torch.bfloat16,
    reason="this CPU does not compute in bfloat16",
)
def test_bfloat16_gives_nearly_the_loss_of_float32() -> None:
    config = step_config(precision="bf16")
    torch.manual_seed(0)
    model = DeformableDetr(config.model).train()

    exact = loss_terms(model, [make_batch(0, 4)], config, torch.float32)
    rounded = loss_terms(model, [make_batch(0, 4)], config, torch.bfloat16)

    assert rounded == pytest.approx(exact, rel=0.05)
    assert model.class_heads[0].weight.dtype == torch.float32


def test_float32_is_what_it_says() -> None:
    assert forward_dtype(step_config(precision="fp32"), CPU) == torch.float32


def test_half_precision_needs_a_gpu() -> None:
    assert forward_dtype(step_config(precision="fp16"), CPU) == torch.float32


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_gradients_that_overflow_repeat_the_step_with_half_the_scale(
    ema_decay: float | None,
) -> None:
    """As in float16, with a scale that takes gradients beyond float32; dropout is drawn again."""
    config = step_config(ema_decay=ema_decay)
    config = replace(config, model=replace(config.model, dropout=0.1, train_batch_norm=True))
    torch.manual_seed(0)
    plain = TrainingState.start(DeformableDetr(config.model).train(), config)
    scaled = copy.deepcopy(plain)
    scaled.optimizer = make_optimizer(scaled.model.named_parameters(), config)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    expected, found = (step_once(state, [make_batch(1, 3)], config) for state in (plain, scaled))

    assert scaled.scaler.get_scale() < 2.0**127
    assert found == pytest.approx(expected, rel=1e-5)
    assert scaled.progress.step == 1
    assert scaled.is_between_steps
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(scaled.model.state_dict()[name], tensor, msg=name)


def test_a_gradient_that_no_scale_makes_finite_ends_the_run() -> None:
    config = step_config()
    state = TrainingState.start(DeformableDetr(config.model).train(), config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    state.model.level_embed.register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(NonFiniteLoss, match="gradient is not finite"):
        step_once(state, [make_batch(0, 2)], config)

    assert state.scaler.get_scale() <= 1  # it was tried without a scale


def test_float16_gives_nearly_the_loss_of_float32() -> None:
    config = step_config()
    torch.manual_seed(0)
    model = DeformableDetr(config.model).train()

    exact = loss_terms(model, [make_batch(0, 4)], config, torch.float32)
    rounded = loss_terms(model, [make_batch(0, 4)], config, torch.float16)

    assert rounded == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("variant", list(Variant))
def test_recomputing_layers_changes_no_gradient(variant: Variant) -> None:
    model = replace(tiny().model, variant=variant, dropout=0.1, frozen_stages=0)
    recomputing = replace(model, gradient_checkpointing=True)
    batches = [make_batch(1, 2), make_batch(3, 2)]

    terms, kept = gradients(replace(step_config(), model=model), batches)
    same_terms, recomputed = gradients(replace(step_config(), model=recomputing), batches)

    assert same_terms == terms
    assert recomputed.keys() == kept.keys()
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in kept.items())


def test_recomputing_keeps_fewer_results_for_the_backward_pass() -> None:
    def num_kept(config: ModelConfig) -> int:
        sizes: list[int] = []
        model = DeformableDetr(replace(config, frozen_stages=-1)).train()
        images, padding_mask, _ = make_batch(0, 2)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(images.permute(0, 3, 1, 2).float(), padding_mask)
        return sum(sizes)

    config = tiny().model

    assert num_kept(replace(config, gradient_checkpointing=True)) < 0.5 * num_kept(config)


def test_statistics_of_batch_norm_count_a_batch_once_when_layers_recompute() -> None:
    model = replace(tiny().model, train_batch_norm=True)
    config = step_config()
    after = []
    for is_recomputing in (False, True):
        torch.manual_seed(0)
        detector = DeformableDetr(replace(model, gradient_checkpointing=is_recomputing)).train()
        accumulate_gradients(detector, [make_batch(1, 2)], config=config, dtype=torch.float32)
        after.append(dict(detector.named_buffers()))

    assert all(torch.equal(after[0][name], values) for name, values in after[1].items())


@pytest.mark.slow
def test_a_compiled_backbone_computes_the_same_under_the_same_names() -> None:
    model = DeformableDetr(tiny().model)
    names = list(model.state_dict())
    images = torch.randn(1, 3, 48, 64)
    expected = model.backbone(images)

    compile_backbone(model, backend="eager")  # traced as always, but no code is generated

    assert list(model.state_dict()) == list(copy.deepcopy(model).state_dict()) == names
    for found, level in zip(model.backbone(images), expected, strict=True):
        torch.testing.assert_close(found, level)
