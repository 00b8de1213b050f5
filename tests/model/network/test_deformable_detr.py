"""The detector's structure and its behaviour on batches, gradients and odd sizes."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from model.config import ModelConfig, Variant
from model.configs import tiny
from model.network.deformable_detr import DeformableDetr
from model.network.queries import BoxHead, LearnedQueries, Queries
from model.training.losses import compute_losses

TINY = tiny().model
variants = pytest.mark.parametrize("variant", list(Variant))


def _images(*sizes: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    images = torch.zeros(len(sizes), 3, height, width)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for b, (h, w) in enumerate(sizes):
        generator = torch.Generator().manual_seed(h * w)
        images[b, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[b, :h, :w] = False
    return images, mask


def _target(size: tuple[int, int], num_boxes: int = 2) -> dict:
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.2]])[:num_boxes]
    return {
        "labels": torch.arange(num_boxes) % TINY.num_classes,
        "boxes": boxes,
        "size": torch.tensor(size),
    }


@pytest.mark.parametrize(
    ("variant", "total", "trainable"),
    [
        (Variant.BASE, 40_118_934, 39_843_414),
        (Variant.REFINE, 40_884_794, 40_609_274),
        (Variant.TWO_STAGE, 41_213_836, 40_938_316),
    ],
)
def test_published_sizes_have_the_published_parameter_counts(
    variant: Variant, total: int, trainable: int
) -> None:
    with torch.device("meta"):
        model = DeformableDetr(ModelConfig(variant=variant))

    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


@pytest.mark.parametrize("query_content", ["position", "memory", "learned"])
def test_queries_are_made_of_the_best_of_all_proposals(
    query_content: Literal["position", "memory", "learned"],
) -> None:
    torch.manual_seed(0)
    config = replace(TINY, variant=Variant.TWO_STAGE, query_content=query_content)
    model = DeformableDetr(config).eval()
    torch.nn.init.normal_(model.get_parameter("queries.box_head.layers.2.weight"))
    images, mask = _images((64, 96), (80, 70))
    made: list[Queries] = []
    model.queries.register_forward_hook(lambda _module, _args, queries: made.append(queries))

    proposals = model(images, mask)["enc_outputs"]

    best = proposals["pred_logits"][..., 0].topk(TINY.num_queries, dim=1).indices[..., None]
    boxes = proposals["pred_boxes"].gather(1, best.expand(-1, -1, 4))
    torch.testing.assert_close(made[0].reference_points, boxes)
    assert not made[0].reference_points.requires_grad
    assert made[0].content.requires_grad is (query_content != "memory")


def test_padding_is_never_proposed_however_unsure_the_model_is() -> None:
    torch.manual_seed(0)
    model = DeformableDetr(replace(TINY, variant=Variant.TWO_STAGE)).eval()
    torch.nn.init.constant_(model.get_parameter("queries.class_head.bias"), -50.0)
    made: list[Queries] = []
    model.queries.register_forward_hook(lambda _module, _args, queries: made.append(queries))

    model(*_images((64, 96), (96, 32)))

    assert made[0].reference_points.max() < 1  # where padding's proposals are


@variants
def test_what_lies_on_padding_does_not_reach_the_transformer(variant: Variant) -> None:
    torch.manual_seed(0)
    model = DeformableDetr(replace(TINY, variant=variant)).eval()
    model.encoder.register_forward_hook(lambda _, args, out: _poison(args[2].padding_mask, out))
    images, mask = _images((64, 96), (96, 160))
    clean = DeformableDetr(replace(TINY, variant=variant)).eval()
    clean.load_state_dict(model.state_dict())

    poisoned = model(images, mask)

    assert torch.equal(poisoned["pred_boxes"], clean(images, mask)["pred_boxes"])


def _poison(padding_mask: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    return torch.where(padding_mask[..., None], torch.full_like(memory, 1e3), memory)


@variants
def test_gradients_reach_every_trainable_parameter(variant: Variant) -> None:
    torch.manual_seed(0)
    model = DeformableDetr(replace(TINY, variant=variant, dropout=0.0)).train()
    for module in model.modules():  # zeros at the start hide the layers before them
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.1)
    images, mask = _images((64, 96), (80, 96))

    outputs = model(images, mask)
    losses = compute_losses(outputs, [_target((64, 96)), _target((80, 96))], config=tiny().loss)
    sum(losses.values(), torch.zeros(())).backward()

    without = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert without == []


def test_frozen_parts_take_no_gradient_and_batch_norm_never_moves() -> None:
    model = DeformableDetr(TINY).train()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items() if "running" in k}

    model(*_images((64, 96)))

    after = model.backbone.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    trainable = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert not any(n.startswith(("conv1", "layer1", "bn1")) or ".bn" in n for n in trainable)
    assert {n.split(".")[0] for n in trainable} == {"layer2", "layer3", "layer4"}


def test_trained_batch_norm_moves_in_training_only() -> None:
    model = DeformableDetr(replace(TINY, train_batch_norm=True, frozen_stages=-1))
    start = model.backbone.bn1.running_mean.clone()

    model.eval()(*_images((64, 96)))
    assert torch.equal(model.backbone.bn1.running_mean, start)
    model.train()(*_images((64, 96)))
    assert not torch.equal(model.backbone.bn1.running_mean, start)


@variants
@pytest.mark.parametrize("num_classes", [1, 1000])
def test_any_number_of_classes(variant: Variant, num_classes: int) -> None:
    model = DeformableDetr(replace(TINY, variant=variant, num_classes=num_classes)).eval()

    outputs = model(*_images((64, 64)))

    assert outputs["pred_logits"].shape == (1, TINY.num_queries, num_classes)


@variants
@pytest.mark.parametrize("size", [(1, 1), (1, 97), (131, 33)])
def test_any_image_size_gives_finite_boxes(variant: Variant, size: tuple[int, int]) -> None:
    model = DeformableDetr(replace(TINY, variant=variant)).eval()

    outputs = model(*_images(size))

    assert outputs["pred_boxes"].isfinite().all()


def test_five_levels_and_no_encoder_layers_are_possible() -> None:
    model = DeformableDetr(replace(TINY, num_levels=5, num_encoder_layers=0)).eval()

    assert model(*_images((64, 64)))["pred_boxes"].shape == (1, TINY.num_queries, 4)


def test_base_shares_one_head_and_the_others_have_one_per_layer() -> None:
    counts = {v: len(DeformableDetr(replace(TINY, variant=v)).box_heads) for v in Variant}

    assert counts == {Variant.BASE: 1, Variant.REFINE: 2, Variant.TWO_STAGE: 2}


@variants
def test_training_starts_as_published(variant: Variant) -> None:
    parameter = DeformableDetr(replace(TINY, variant=variant)).get_parameter
    head, attention = "box_heads.0.layers.2", "decoder.layers.0.cross_attn"
    expected = 0.0 if variant is Variant.TWO_STAGE else -2.0

    assert parameter(f"{head}.bias").tolist() == [0.0, 0.0, expected, expected]
    assert not parameter(f"{head}.weight").any()
    assert torch.allclose(parameter("class_heads.0.bias"), torch.tensor(-4.59512))
    assert not parameter(f"{attention}.attention_weights.bias").any()
    # Two heads look right and left; point k of each is at distance k + 1.
    first = parameter(f"{attention}.sampling_offsets.bias").view(2, 4, 2, 2)[:, 0]
    torch.testing.assert_close(first[0], torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    torch.testing.assert_close(
        first[1], torch.tensor([[-1.0, 0.0], [-2.0, 0.0]]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 30}, "multiple"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_levels": 2}, "num_levels"),
        ({"query_content": "memory"}, "two_stage"),
        ({"query_content": "learned"}, "two_stage"),
        ({"look_forward_twice": True}, "whose layers correct boxes"),
        ({"backbone_blocks": (1, 1, 1)}, "backbone_blocks"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_learned_content_is_the_same_for_every_image() -> None:
    config = replace(TINY, variant=Variant.TWO_STAGE, query_content="learned")
    model = DeformableDetr(config).eval()
    made: list[Queries] = []
    model.queries.register_forward_hook(lambda _module, _args, queries: made.append(queries))

    model(*_images((64, 96), (80, 70)))

    table = model.get_parameter("queries.content.weight")
    assert all(torch.equal(content, table) for content in made[0].content)
    assert not torch.equal(*made[0].position)


@pytest.mark.parametrize("looks_twice", [False, True])
def test_a_box_corrects_the_layer_before_its_own_if_layers_look_twice(looks_twice: bool) -> None:
    torch.manual_seed(0)
    config = replace(TINY, variant=Variant.REFINE, num_decoder_layers=3, dropout=0.0)
    once = DeformableDetr(config)
    model = DeformableDetr(replace(config, look_forward_twice=looks_twice))
    model.load_state_dict(once.state_dict())
    images, mask = _images((64, 96))

    boxes = model(images, mask)["pred_boxes"]
    boxes.sum().backward()

    assert torch.equal(boxes, once(images, mask)["pred_boxes"])
    gradients = [model.get_parameter(f"box_heads.{i}.layers.2.bias").grad for i in range(3)]
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [
        False,
        looks_twice,
        True,
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_moves_no_learned_reference_point(dtype: torch.dtype) -> None:
    queries = LearnedQueries(TINY)
    memory = torch.zeros(1, 1, TINY.hidden_dim)
    expected = queries(memory, None).reference_points

    with torch.autocast("cpu", dtype):
        found = queries(memory, None).reference_points

    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_boxes_of_autocast_are_not_rounded_to_its_type(dtype: torch.dtype) -> None:
    head = BoxHead(TINY.hidden_dim, initial_size_logit=-2.0)
    torch.nn.init.normal_(next(head.layers[2].parameters()))

    with torch.autocast("cpu", dtype):
        deltas = head(torch.randn(7, TINY.hidden_dim))

    assert deltas.dtype == torch.float32
    assert not torch.equal(deltas.to(dtype).float(), deltas)
