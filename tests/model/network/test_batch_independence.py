"""What an image gives does not depend on the images that share its batch, nor on its padding."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from model.config import LossConfig, ModelConfig, Variant
from model.configs import demo, finetune, small, tiny
from model.network.backbone import BatchNorm2d
from model.network.deformable_detr import DeformableDetr
from model.network.padding import halved_masks
from model.network.pyramid import build_pyramid, is_inside_border
from model.training.losses import compute_losses

TINY = tiny().model
MODELS: dict[str, ModelConfig] = {
    **{variant.value: replace(TINY, variant=variant, dropout=0.0) for variant in Variant},
    "basic blocks": replace(TINY, backbone_block="basic", dropout=0.0),
    "five levels": replace(TINY, num_levels=5, dropout=0.0),
    "demo": demo().model,  # trains its batch norm
}
LOSSES: dict[str, LossConfig] = {"demo": demo().loss}
models = pytest.mark.parametrize("name", MODELS)
# Two_stage takes no more proposals than there are tokens: 64 x 64 has enough for all.
Size = tuple[int, int]
SIZES = st.tuples(st.integers(64, 150), st.integers(64, 150))


def _model(name: str) -> DeformableDetr:
    """In float64, with biases and heads that are not zero: padding would show."""
    torch.manual_seed(0)
    model = DeformableDetr(MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, BatchNorm2d):
                module.bias.add_(0.3 * torch.randn_like(module.bias))
    return model.double()


def _batch(sizes: list[Size], padded: Size = (1, 1)) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = (max(side) for side in zip(*sizes, padded, strict=True))
    images = torch.zeros(len(sizes), 3, height, width, dtype=torch.float64)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for b, (h, w) in enumerate(sizes):
        generator = torch.Generator().manual_seed(1000 * h + w)
        images[b, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[b, :h, :w] = False
    return images, mask


def _targets(sizes: list[Size]) -> list[dict[str, Any]]:
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.2]])
    return [
        {"labels": torch.tensor([0, 2]), "boxes": boxes, "size": torch.tensor(size)}
        for size in sizes
    ]


def _loss(model: DeformableDetr, name: str, sizes: list[Size], padded: Size) -> torch.Tensor:
    outputs = model.train()(*_batch(sizes, padded))
    losses = compute_losses(outputs, _targets(sizes), config=LOSSES.get(name, LossConfig()))
    return torch.stack(list(losses.values())).sum()


@models
@settings(max_examples=6, derandomize=True, deadline=None)
@given(sizes=st.lists(SIZES, min_size=2, max_size=3), padded=SIZES)
def test_an_image_gives_the_same_alone_and_in_any_batch(
    name: str, sizes: list[Size], padded: Size
) -> None:
    model = _model(name).eval()

    with torch.no_grad():
        alone = [model(*_batch([size])) for size in sizes]
        batched = model(*_batch(sizes, padded))

    for key in ("pred_logits", "pred_boxes"):
        expected = torch.cat([output[key] for output in alone])
        # Positions and reference points are float32 by their contract.
        torch.testing.assert_close(batched[key], expected, rtol=0, atol=2e-5)
    assert batched["pred_boxes"].std() > 0.05


@models
@settings(max_examples=3, derandomize=True, deadline=None)
@given(sizes=st.lists(SIZES, min_size=1, max_size=2), padded=SIZES)
def test_more_padding_changes_neither_the_loss_nor_what_training_does(
    name: str, sizes: list[Size], padded: Size
) -> None:
    model, other = _model(name), _model(name)

    loss = _loss(model, name, sizes, (1, 1))
    padded_loss = _loss(other, name, sizes, (150 + padded[0], padded[1]))
    loss.backward()
    padded_loss.backward()

    torch.testing.assert_close(padded_loss, loss, rtol=1e-5, atol=0)
    for (key, parameter), same in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(same.grad, parameter.grad, rtol=1e-3, atol=1e-4, msg=key)
    for key, buffer in model.named_buffers():
        torch.testing.assert_close(other.get_buffer(key), buffer, rtol=0, atol=1e-9, msg=key)


def test_the_loss_of_a_batch_is_the_mean_of_its_images() -> None:
    sizes = [(70, 130), (97, 64), (128, 101)]
    model = _model("two_stage")

    alone = [_loss(model, "two_stage", [size], (1, 1)) for size in sizes]
    batched = _loss(model, "two_stage", sizes, (1, 1))

    torch.testing.assert_close(batched, torch.stack(alone).mean(), rtol=1e-5, atol=0)


def test_the_published_training_takes_padding_for_a_part_of_the_image() -> None:
    exact, published = _model("two_stage"), _model("two_stage")
    published.config = replace(published.config, train_padding="published")

    losses = [_loss(model, "two_stage", [(70, 90)], (150, 150)) for model in (exact, published)]

    assert abs(losses[0] - losses[1]) > 0.01


@pytest.mark.parametrize("config", [demo(), finetune(), small(), tiny()], ids=lambda c: c.name)
def test_configurations_that_are_not_published_train_as_they_detect(config: Any) -> None:
    assert config.model.train_padding == "exact"


def test_batch_norm_without_padding_is_that_of_torch() -> None:
    torch.manual_seed(0)
    norm, other = (BatchNorm2d(8, trained=True).double().train() for _ in range(2))
    x = torch.randn(3, 8, 5, 7, dtype=torch.float64)

    found = norm(x, torch.zeros(3, 5, 7, dtype=torch.bool))

    torch.testing.assert_close(found, other(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(norm.running_mean, other.running_mean)
    torch.testing.assert_close(norm.running_var, other.running_var)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), more=SIZES)
def test_a_level_has_as_many_valid_cells_as_the_image_has_alone(size: Size, more: Size) -> None:
    _, alone = _batch([size])
    _, padded = _batch([size], (size[0] + more[0], size[1] + more[1]))

    counts = [int((~mask).sum()) for mask in halved_masks(padded, 7)]

    assert counts == [mask.numel() for mask in halved_masks(alone, 7)]


@pytest.mark.parametrize("count", [50, 100, 150, 7, 49, 51, 99, 101, 167])
def test_a_cell_within_one_percent_of_the_border_gives_no_proposal(count: int) -> None:
    index = torch.arange(count + 20)

    inside = is_inside_border(index, torch.tensor([count]))[0]

    centres = (index + 0.5) / torch.tensor(count)  # exact rounding, as mmdetection divides
    assert torch.equal(inside, (centres > 0.01) & (centres < 0.99))


def test_proposals_larger_than_the_image_are_none() -> None:
    _, mask = _batch([(64, 64)])

    pyramid = build_pyramid(halved_masks(mask, 8)[2:])

    sizes = pyramid.level_sizes[pyramid.has_proposal[0]]
    assert sizes.max() < 0.99
