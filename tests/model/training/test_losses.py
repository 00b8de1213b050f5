"""Matching and losses: edge cases, and that accumulation equals one large batch."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from model.config import LossConfig
from model.training.denoising import add_noise
from model.training.losses import (
    TERMS,
    LossNormalisers,
    compute_losses,
    loss_normalisers,
    require_class_weights,
)
from model.training.matcher import Matches, PaddedTargets, Predictions, match, matching_cost

CONFIG = LossConfig()


def _outputs(batch: int = 2, queries: int = 6, classes: int = 3, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": torch.randn(batch, queries, classes, generator=generator).requires_grad_(),
        "pred_boxes": (
            0.2 + 0.3 * torch.rand(batch, queries, 4, generator=generator)
        ).requires_grad_(),
        "aux_outputs": [],
    }


def _target(num_boxes: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "labels": torch.randint(0, 3, (num_boxes,), generator=generator),
        "boxes": 0.2 + 0.3 * torch.rand(num_boxes, 4, generator=generator),
        "size": torch.tensor((48, 64)),
    }


def _match(outputs: dict, targets: list[dict], repeats: int = 1) -> Matches:
    [matches] = match([_predictions(outputs, targets, repeats)], config=CONFIG)
    return matches


def _predictions(outputs: dict, targets: list[dict], repeats: int = 1) -> Predictions:
    logits, boxes = (outputs[name].detach()[None] for name in ("pred_logits", "pred_boxes"))
    return Predictions(logits, boxes, PaddedTargets.of(targets), repeats)


def test_no_ground_truth_trains_the_background_only() -> None:
    outputs = _outputs()

    losses = compute_losses(outputs, [_target(0), _target(0)], config=CONFIG)
    sum(losses.values(), torch.zeros(())).backward()

    assert losses["loss_bbox"] == 0
    assert losses["loss_iou"] == 0
    assert (outputs["pred_logits"].grad > 0).all()
    assert not outputs["pred_boxes"].grad.any()


def test_more_ground_truths_than_queries_match_every_query_once() -> None:
    outputs, target = _outputs(batch=1, queries=4), _target(9)

    matches = _match(outputs, [target])

    assert sorted(matches.prediction.tolist()) == [0, 1, 2, 3]
    assert len(set(matches.truth.tolist())) == 4


def test_repeats_match_every_ground_truth_that_often() -> None:
    outputs, target = _outputs(batch=1, queries=20), _target(3)

    matches = _match(outputs, [target], repeats=4)

    assert torch.bincount(matches.truth).tolist() == [4, 4, 4]


def test_every_image_and_layer_gets_its_own_cheapest_match() -> None:
    outputs, targets = _outputs(batch=3), [_target(4), _target(0), _target(2, seed=5)]
    logits = torch.stack((outputs["pred_logits"], outputs["pred_logits"].flip(1))).detach()
    boxes = torch.stack((outputs["pred_boxes"], outputs["pred_boxes"].flip(1))).detach()
    predictions = Predictions(logits, boxes, PaddedTargets.of(targets))

    [matches] = match([predictions], config=CONFIG)

    for image in range(3):
        cost = matching_cost(predictions, image=image, config=CONFIG)
        for layer, own in enumerate(cost):
            chosen = (matches.layer == layer) & (matches.image == image)
            best = own[linear_sum_assignment(own.numpy())].sum()
            assert own[matches.prediction[chosen], matches.truth[chosen]].sum() == best


def test_parts_that_are_matched_together_are_matched_as_each_alone() -> None:
    targets = [_target(3), _target(0)]
    parts = [
        _predictions(_outputs(queries=6), targets),
        _predictions(_outputs(queries=9, classes=5, seed=1), targets, 2),
    ]

    together = match(parts, config=CONFIG)

    for part, matches in zip(parts, together, strict=True):
        [alone] = match([part], config=CONFIG)
        assert all(map(torch.equal, matches, alone))


def test_the_cost_of_a_ground_truth_is_its_own_however_many_others_there_are() -> None:
    outputs, many = _outputs(batch=1), _target(120)  # more than classes
    few = {"labels": many["labels"][:2], "boxes": many["boxes"][:2], "size": many["size"]}

    costs = [
        matching_cost(_predictions(outputs, [target]), image=0, config=CONFIG)
        for target in (few, many)
    ]

    assert [cost.shape[-1] for cost in costs] == [2, 120]
    assert torch.equal(costs[0], costs[1][..., :2])


@pytest.mark.parametrize("logit", [-1e4, 40.0, 1e4])
def test_extreme_logits_keep_cost_and_loss_finite(logit: float) -> None:
    outputs = _outputs()
    outputs["pred_logits"] = torch.full_like(outputs["pred_logits"], logit).requires_grad_()

    losses = compute_losses(outputs, [_target(2), _target(3)], config=CONFIG)

    assert all(value.isfinite() for value in losses.values())


def test_a_prediction_that_is_not_a_number_is_matched_last() -> None:
    outputs, target = _outputs(batch=1), _target(5)
    outputs["pred_boxes"] = outputs["pred_boxes"].detach().clone()
    outputs["pred_boxes"][0, 2] = float("nan")

    assert 2 not in _match(outputs, [target]).prediction.tolist()


@pytest.mark.parametrize("classification", ["focal", "varifocal"])
def test_accumulated_halves_equal_one_batch(classification: Literal["focal", "varifocal"]) -> None:
    config = replace(CONFIG, classification=classification)
    targets = [_target(3, seed=1), _target(0), _target(1, seed=2), _target(2, seed=3)]
    whole = _outputs(batch=4)
    sum(compute_losses(whole, targets, config=config).values(), torch.zeros(())).backward()

    halves = _outputs(batch=4)
    normalisers = loss_normalisers(targets, num_queries=6, num_tokens=None, config=config)
    for part in (slice(0, 2), slice(2, 4)):
        outputs = {
            "pred_logits": halves["pred_logits"][part],
            "pred_boxes": halves["pred_boxes"][part],
            "aux_outputs": [],
        }
        losses = compute_losses(outputs, targets[part], config=config, normalisers=normalisers)
        sum(losses.values(), torch.zeros(())).backward()

    torch.testing.assert_close(halves["pred_logits"].grad, whole["pred_logits"].grad)
    torch.testing.assert_close(halves["pred_boxes"].grad, whole["pred_boxes"].grad)


def test_varifocal_wants_the_score_to_be_the_overlap() -> None:
    config = replace(CONFIG, classification="varifocal")
    target = {**_target(1), "labels": torch.tensor([1])}
    outputs = _outputs(batch=1, queries=1)
    outputs["pred_boxes"] = target["boxes"][None].clone()  # IoU 1

    logits = torch.tensor([[[-20.0, 20.0, -20.0]]])
    right = compute_losses({**outputs, "pred_logits": logits}, [target], config=config)
    wrong = compute_losses({**outputs, "pred_logits": -logits}, [target], config=config)

    assert right["loss_cls"] < 1e-6 < wrong["loss_cls"]


def test_varifocal_is_what_its_source_says() -> None:
    config = replace(CONFIG, classification="varifocal", class_weight=1.0)
    target = {
        **_target(1),
        "labels": torch.tensor([1]),
        "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]),
    }
    logits = torch.tensor([[[0.3, -0.7, 1.1]]], requires_grad=True)
    boxes = torch.tensor([[[0.6, 0.6, 0.4, 0.4]]], requires_grad=True)
    outputs = {"pred_logits": logits, "pred_boxes": boxes, "aux_outputs": []}

    loss = compute_losses(outputs, [target], config=config)["loss_cls"]
    loss.backward()

    overlap = 0.09 / (0.16 + 0.16 - 0.09)
    first, own, last = torch.sigmoid(logits.detach())[0, 0].tolist()
    expected = -overlap * (overlap * math.log(own) + (1 - overlap) * math.log(1 - own))
    expected -= 0.75 * (first**2 * math.log(1 - first) + last**2 * math.log(1 - last))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert boxes.grad is None or not boxes.grad.any()  # a box is not trained by its score
    assert logits.grad is not None
    slopes = [0.75 * first**3, overlap * (own - overlap), 0.75 * last**3]
    assert logits.grad[0, 0].tolist() == pytest.approx(slopes, rel=1e-5)


def test_a_box_smaller_than_a_pixel_is_found_by_the_same_box() -> None:
    target = _target(1) | {"size": torch.tensor((800, 1333))}
    target["boxes"] = torch.tensor([[0.5, 0.5, 0.5 / 1333, 0.5 / 800]])
    outputs = {**_outputs(batch=1, queries=1), "pred_boxes": target["boxes"][None]}
    overlap_alone = replace(CONFIG, class_weight=0.0, box_weight=0.0)

    loss = compute_losses(outputs, [target], config=CONFIG)["loss_iou"]
    cost = matching_cost(_predictions(outputs, [target]), image=0, config=overlap_alone)

    assert loss.item() == pytest.approx(0, abs=1e-3)
    assert cost.item() == pytest.approx(-CONFIG.giou_weight, abs=1e-3)


def test_sums_are_divided_by_the_number_of_pairs() -> None:
    config = replace(CONFIG, encoder_matches=2, one_to_many_matches=4)
    targets = [_target(9), _target(0), _target(3)]

    found = loss_normalisers(
        targets,
        num_queries=4,
        num_tokens=5,
        config=config,
        num_one_to_many=10,
        num_denoising=12,
    )

    assert found == (4 + 0 + 3, 5 + 0 + 5, 10 + 0 + 10, 9 + 0 + 6)


def test_without_a_single_pair_sums_are_divided_by_1() -> None:
    found = loss_normalisers([_target(0)], num_queries=4, num_tokens=None, config=CONFIG)

    assert found == (1, 1, 1, 1)


def test_every_kind_of_terms_is_divided_by_the_number_of_its_own_pairs() -> None:
    targets = [{**_target(2), "image_id": 0}, {**_target(3), "image_id": 1}]
    noisy = add_noise(targets, num_queries=8, num_classes=3, config=CONFIG, seed=(0, 0))
    outputs = _outputs() | {
        "enc_outputs": _outputs(queries=20, seed=1),
        "one_to_many": _outputs(queries=30, seed=2),
        "denoising": _outputs(queries=noisy.truth.shape[1], seed=3),
    }

    sums, means = (
        compute_losses(outputs, targets, config=CONFIG, normalisers=normalisers, noisy=noisy)
        for normalisers in (LossNormalisers(1, 1, 1, 1), LossNormalisers(2, 3, 5, 7))
    )

    ratios = {name: (sums[name] / means[name]).item() for name in sums}
    divisors = {"": 2, "enc_": 3, "one_to_many_": 5, "denoising_": 7}
    expected = {
        f"{prefix}{term}": divisor for prefix, divisor in divisors.items() for term in TERMS
    }
    assert ratios == pytest.approx(expected, rel=1e-5)


def test_several_proposals_are_matched_to_an_object_where_the_config_wants_it() -> None:
    proposals = _outputs(batch=1, queries=20) | {"pred_boxes": torch.full((1, 20, 4), 0.4)}
    outputs, target = {**_outputs(batch=1), "enc_outputs": proposals}, _target(2)
    one_each = LossNormalisers(1, 1)

    single, double = (
        compute_losses(
            outputs,
            [target],
            config=replace(CONFIG, encoder_matches=matches),
            normalisers=one_each,
        )["enc_loss_bbox"]
        for matches in (1, 2)
    )

    assert double.item() == pytest.approx(2 * single.item())


def test_the_terms_of_a_layer_are_named_after_it() -> None:
    first, last, target = _outputs(batch=1), _outputs(batch=1, seed=1), _target(2)

    losses = compute_losses({**last, "aux_outputs": [first]}, [target], config=CONFIG)

    for prefix, outputs in (("d0.", first), ("", last)):
        alone = compute_losses(outputs, [target], config=CONFIG)
        assert all(torch.equal(losses[f"{prefix}{name}"], alone[name]) for name in TERMS)


def test_encoder_loss_looks_for_objects_of_any_class() -> None:
    outputs = _outputs(batch=1)
    outputs["enc_outputs"] = {
        "pred_logits": outputs["pred_logits"],
        "pred_boxes": outputs["pred_boxes"],
    }
    one, other = _target(2), _target(2)
    other["labels"] = (one["labels"] + 1) % 3

    first = compute_losses(outputs, [one], config=CONFIG)["enc_loss_cls"]

    assert first == compute_losses(outputs, [other], config=CONFIG)["enc_loss_cls"]


@pytest.mark.parametrize("classification", ["focal", "varifocal"])
def test_a_class_weight_counts_for_matches_of_its_class_alone(
    classification: Literal["focal", "varifocal"],
) -> None:
    outputs, target = _outputs(batch=1), _target(1)
    target["labels"] = torch.tensor([2])

    def class_loss(*weights: float) -> float:
        config = replace(CONFIG, classification=classification, class_weights=weights)
        return compute_losses(outputs, [target], config=config)["loss_cls"].item()

    plain = class_loss()
    added = class_loss(1.0, 1.0, 2.0) - plain
    assert added > 0
    assert class_loss(1.0, 1.0, 3.0) - plain == pytest.approx(2 * added, rel=1e-4)
    assert class_loss(5.0, 5.0, 1.0) == class_loss(1.0, 1.0, 1.0) == plain


def test_class_weights_do_not_count_on_the_encoder_which_knows_no_classes() -> None:
    outputs = {**_outputs(), "enc_outputs": _outputs(queries=20, seed=1)}
    targets = [_target(2), _target(1)]
    weighted = replace(CONFIG, class_weights=(9.0, 9.0, 9.0))

    plain, found = (compute_losses(outputs, targets, config=c) for c in (CONFIG, weighted))

    assert torch.equal(found["enc_loss_cls"], plain["enc_loss_cls"])
    assert found["loss_cls"] > plain["loss_cls"]


def test_class_weights_of_another_number_of_classes_are_refused_with_the_order() -> None:
    config = replace(CONFIG, class_weights=(1.0, 2.0))

    with pytest.raises(ValueError, match=r"3 in all, got 2; .* is cat, dog, cow"):
        require_class_weights(config, ["cat", "dog", "cow"])
