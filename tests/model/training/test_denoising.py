"""Queries that only training has: what they are given, what sees them, what they cost."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import LossConfig, ModelConfig, TrainConfig, Variant
from model.configs import tiny
from model.network.boxes import cxcywh_to_xyxy, generalised_iou
from model.network.deformable_detr import DeformableDetr
from model.network.queries import Queries
from model.network.query_parts import NoisyObjects
from model.training.denoising import add_noise, num_groups
from model.training.losses import TERMS, compute_losses, loss_names
from model.training.training_state import TrainingState
from tests.model.training.test_optimiser_step import make_batch, step_once

TWO_STAGE = replace(tiny().model, variant=Variant.TWO_STAGE, dropout=0.0)
EXTRA = replace(TWO_STAGE, one_to_many_queries=8, denoising_queries=12)
CONFIG = LossConfig(one_to_many_matches=2)


def target(num_objects: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(num_objects)
    return {
        "image_id": num_objects,
        "labels": torch.randint(0, 3, (num_objects,), generator=generator),
        "boxes": 0.3 + 0.2 * torch.rand(num_objects, 4, generator=generator),
        "size": torch.tensor([48, 64]),
    }


def noise(*counts: int, **changes: Any) -> NoisyObjects:
    targets = [target(count) for count in counts]
    config = replace(CONFIG, **changes)
    return add_noise(targets, num_queries=12, num_classes=3, config=config, seed=(0, 0))


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)


def detector(config: ModelConfig) -> DeformableDetr:
    """In training, with heads and attention that tell queries apart."""
    torch.manual_seed(0)
    model = DeformableDetr(config).train()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "label_content" not in name:
                generator = torch.Generator().manual_seed(len(name))
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def plain_twin(model: DeformableDetr) -> DeformableDetr:
    twin = DeformableDetr(TWO_STAGE).train()
    twin.load_state_dict({n: x for n, x in model.state_dict().items() if "label_content" not in n})
    return twin


def test_an_image_has_every_object_near_and_far_in_each_group() -> None:
    noisy = noise(2, 0, 4)

    assert [num_groups(count, num_queries=12) for count in (2, 0, 4, 9)] == [3, 0, 1, 1]
    assert noisy.groups[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert noisy.truth[0].tolist() == [0, 1, -1, -1] * 3
    assert noisy.groups[1].tolist() == [-1] * 12
    assert noisy.groups[2].tolist() == [0] * 8 + [-1] * 4
    assert noisy.truth[2].tolist() == [0, 1, 2, 3] + [-1] * 8


def test_near_boxes_lie_on_their_object_and_far_ones_farther_off() -> None:
    torch.manual_seed(0)
    noisy = noise(1, denoising_box_noise=0.4)
    true = cxcywh_to_xyxy(target(1)["boxes"])

    iou, _ = generalised_iou(cxcywh_to_xyxy(noisy.boxes[0]), true)

    is_near = noisy.truth[0] >= 0
    assert iou[is_near].min() > 0.4
    assert iou[is_near].mean() > iou[~is_near].mean() + 0.2
    assert iou[is_near].max() < 1
    assert (noisy.boxes >= 0).all()
    assert (noisy.boxes <= 1).all()


def test_noisy_boxes_are_larger_and_smaller_than_their_object_and_never_leave_the_image() -> None:
    corner = {**target(1), "boxes": torch.tensor([[0.85, 0.15, 0.3, 0.3]])}

    noisy = add_noise([corner], num_queries=200, num_classes=3, config=CONFIG, seed=(0, 0))

    sides = noisy.boxes[0, noisy.truth[0] >= 0, 2:]
    corners = cxcywh_to_xyxy(noisy.boxes)
    assert (sides.amin(0) < 0.25).all()
    assert (sides[:, 0] > 0.35).any()
    assert (noisy.boxes[..., 2:] >= 0).all()
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6


@pytest.mark.parametrize("image_id", [7, -1, 2**64 + 7])
def test_the_noise_of_an_image_is_that_of_its_id_and_the_step(image_id: int) -> None:
    one = {**target(2), "image_id": image_id}
    twin = {**target(2), "image_id": 8}

    def noise_of(*targets: dict[str, Any], step: int = 0) -> Tensor:
        seed = (0, step)
        return add_noise([*targets], num_queries=12, num_classes=3, config=CONFIG, seed=seed).boxes

    alone = noise_of(one)[0]
    assert torch.equal(noise_of(twin, one)[1], alone)
    assert not torch.equal(noise_of(twin)[0], alone)
    assert not torch.equal(noise_of(one, step=1)[0], alone)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 2 / 3)])
def test_a_share_of_the_labels_is_wrong(share: float, expected: float) -> None:
    torch.manual_seed(0)
    labels = torch.ones(100, dtype=torch.int64)
    many = {**target(100), "labels": labels}

    config = replace(CONFIG, denoising_label_noise=share)
    noisy = add_noise([many], num_queries=1000, num_classes=3, config=config, seed=(0, 0))

    wrong = (noisy.labels != 1).float().mean().item()
    assert wrong == pytest.approx(expected, abs=0.05)


def test_matched_queries_see_no_query_that_only_training_has(
    inputs: tuple[Tensor, Tensor],
) -> None:
    model = detector(EXTRA)

    found = model(*inputs, noise(2, 1))
    expected = plain_twin(model)(*inputs)

    torch.testing.assert_close(found["pred_logits"], expected["pred_logits"])
    torch.testing.assert_close(found["pred_boxes"], expected["pred_boxes"])
    assert found["one_to_many"]["pred_boxes"].shape == (2, 8, 4)
    assert found["denoising"]["pred_logits"].shape == (2, 12, 3)


def test_a_kind_of_queries_that_is_not_used_has_no_outputs_to_match(
    inputs: tuple[Tensor, Tensor],
) -> None:
    noisy_alone = detector(replace(EXTRA, one_to_many_queries=0))(*inputs, noise(2, 1))
    several_alone = detector(replace(EXTRA, denoising_queries=0))(*inputs)

    assert "one_to_many" not in noisy_alone
    assert noisy_alone["denoising"]["pred_logits"].shape == (2, 12, 3)
    assert "denoising" not in several_alone
    assert several_alone["one_to_many"]["pred_boxes"].shape == (2, 8, 4)


def test_a_noisy_object_starts_at_its_box_with_the_position_of_a_proposal_there(
    inputs: tuple[Tensor, Tensor],
) -> None:
    torch.manual_seed(0)
    model = DeformableDetr(EXTRA).train()
    made: list[Queries] = []
    model.queries.register_forward_hook(lambda _module, _args, queries: made.append(queries))
    model(*inputs)
    count = noise(2, 2).truth.shape[1]
    proposed = made[0].reference_points[:, :count]

    found = model(*inputs, noise(2, 2)._replace(boxes=proposed))["denoising"]["pred_boxes"]

    torch.testing.assert_close(found, proposed)
    torch.testing.assert_close(made[1].position[:, -count:], made[1].position[:, :count])


def test_a_tiny_image_has_as_many_queries_as_proposals_and_all_noisy_ones() -> None:
    tiny_images = torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)

    found = detector(replace(EXTRA, num_queries=40))(*tiny_images, noise(2, 1))

    num_proposals = found["enc_outputs"]["pred_logits"].shape[1]
    assert found["pred_logits"].shape[1] == num_proposals < 40
    assert found["denoising"]["pred_logits"].shape[1] == 12


def test_groups_of_noisy_objects_do_not_see_each_other(inputs: tuple[Tensor, Tensor]) -> None:
    model, noisy = detector(EXTRA), noise(2, 1)
    is_first = noisy.groups == 0
    labels = torch.where(is_first, noisy.labels, (noisy.labels + 1) % 3)

    before = model(*inputs, noisy)["denoising"]["pred_logits"]
    after = model(*inputs, noisy._replace(labels=labels))["denoising"]["pred_logits"]

    torch.testing.assert_close(after[is_first], before[is_first])
    assert not torch.allclose(after[~is_first], before[~is_first])


def test_inference_has_none_of_them(inputs: tuple[Tensor, Tensor]) -> None:
    model = detector(EXTRA)
    twin = plain_twin(model)

    found, expected = model.eval()(*inputs), twin.eval()(*inputs)

    assert found.keys() == expected.keys()
    assert torch.equal(found["pred_logits"], expected["pred_logits"])


def test_learned_queries_that_only_training_has_do_not_change_inference(
    inputs: tuple[Tensor, Tensor],
) -> None:
    model = detector(replace(EXTRA, query_content="learned")).eval()
    before = model(*inputs)["pred_logits"]

    with torch.no_grad():
        model.get_parameter("queries.content.weight")[EXTRA.num_queries :] += 1

    assert torch.equal(model(*inputs)["pred_logits"], before)


def perfect(noisy: NoisyObjects, targets: list[dict[str, Any]]) -> dict[str, Any]:
    """Outputs that find the object of every near slot, and nothing in the others."""
    boxes = torch.full((*noisy.truth.shape, 4), 0.9)
    logits = torch.full((*noisy.truth.shape, 3), -30.0)
    for image, one in enumerate(targets):
        slots = (noisy.truth[image] >= 0).nonzero()[:, 0]
        objects = noisy.truth[image][slots]
        boxes[image, slots] = one["boxes"][objects]
        logits[image, slots, one["labels"][objects]] = 30.0
    return {"pred_logits": logits, "pred_boxes": boxes, "aux_outputs": []}


def test_what_finds_every_near_object_and_no_far_one_costs_nothing() -> None:
    targets = [target(2), target(0), target(4)]
    noisy = noise(2, 0, 4)
    outputs = perfect(noisy, targets)
    outputs["pred_logits"][noisy.groups < 0] = 30.0  # empty slots may say what they like

    losses = compute_losses({**outputs, "denoising": outputs}, targets, config=CONFIG, noisy=noisy)

    terms = [losses[f"denoising_{name}"] for name in ("loss_cls", "loss_bbox", "loss_iou")]
    assert torch.stack(terms).tolist() == pytest.approx([0, 0, 0], abs=1e-5)

    outputs["pred_logits"][0, 2] = 30.0  # a far one
    worse = compute_losses({**outputs, "denoising": outputs}, targets, config=CONFIG, noisy=noisy)
    assert worse["denoising_loss_cls"] > 1


def test_noise_without_objects_costs_nothing() -> None:
    noisy, targets = noise(0, 0), [target(0), target(0)]
    outputs = perfect(noisy, targets)

    losses = compute_losses({**outputs, "denoising": outputs}, targets, config=CONFIG, noisy=noisy)

    assert sum(losses[f"denoising_{name}"].item() for name in TERMS) == 0


def test_several_queries_are_matched_to_an_object_and_weighted() -> None:
    targets = [target(2)]
    found = {
        "pred_logits": torch.full((1, 4, 3), -30.0),
        "pred_boxes": targets[0]["boxes"].repeat(2, 1)[None],
        "aux_outputs": [],
    }
    found["pred_logits"][0, torch.arange(4), targets[0]["labels"].repeat(2)] = 30.0
    outputs = {**found, "one_to_many": found}

    losses = compute_losses(outputs, targets, config=CONFIG)

    names = ("loss_cls", "loss_bbox", "loss_iou")
    assert [losses[f"one_to_many_{n}"].item() for n in names] == pytest.approx([0, 0, 0], abs=1e-5)
    assert losses["loss_cls"] > 1  # matched one to one, two of the four are wrong

    found["pred_logits"][0, 0] = 0.0
    single, double = (
        compute_losses(outputs, targets, config=replace(CONFIG, one_to_many_weight=weight))
        for weight in (1.0, 2.0)
    )
    assert double["one_to_many_loss_cls"] == pytest.approx(2 * single["one_to_many_loss_cls"])


@pytest.mark.parametrize("content", ["position", "learned", "memory"])
def test_a_step_trains_with_all_of_them(content: Any) -> None:
    model = replace(EXTRA, query_content=content, gradient_checkpointing=True)
    config: TrainConfig = replace(tiny(), model=model, loss=CONFIG)
    state = TrainingState.start(DeformableDetr(model).train(), config)
    before = state.model.get_parameter("queries.label_content.weight").clone()

    values = step_once(state, [make_batch(0, 2), make_batch(4, 1)], config)

    assert set(loss_names(model)) <= values.keys()
    assert values["denoising_loss_bbox"] > 0
    assert values["one_to_many_loss_cls"] > 0
    assert not torch.equal(state.model.get_parameter("queries.label_content.weight"), before)


@pytest.mark.parametrize("name", ["one_to_many_queries", "denoising_queries"])
def test_queries_of_these_kinds_need_proposals(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs the two_stage variant"):
        replace(tiny().model, **{name: 5})  # type: ignore[arg-type]
