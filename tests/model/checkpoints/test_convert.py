"""Published files of every layout become the same checkpoint."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from bundle.manifest import ClassInfo
from model.checkpoint import main
from model.checkpoints.checkpoint_file import build_model, load_checkpoint
from model.checkpoints.convert import convert
from model.checkpoints.published_layouts import COCO_CLASSES
from model.config import ModelConfig, Variant
from model.configs import base
from tests.data.parity.make_checkpoint import (
    FORMATS,
    NAMES,
    checkpoint,
    mmdet_tensors,
)
from tests.model.checkpoints.published import (
    Tensors,
    assert_same_tensors,
    authors,
    convert_format,
    numbered_head,
    share_one_head,
    variants,
    without,
)

VARIANTS = {"base": Variant.BASE, "refine": Variant.REFINE, "twostage": Variant.TWO_STAGE}


@variants
def test_every_layout_gives_the_same_tensors(tmp_path: Path, variant: str) -> None:
    reference = convert_format(tmp_path, variant, "mmdet2").state_dict
    for file_format in FORMATS[1:]:
        state = convert_format(tmp_path, variant, file_format).state_dict
        biases = {f"input_proj.{i}.conv.bias" for i in range(4)}
        expected_biases = set() if file_format == "mmdet3" else biases

        assert state.keys() - reference.keys() == expected_biases
        assert not any(state[name].any() for name in expected_biases)
        assert all(torch.equal(state[name], reference[name]) for name in reference)


@variants
@pytest.mark.parametrize("file_format", FORMATS)
def test_variant_and_sizes_are_read_off_the_file(
    tmp_path: Path, variant: str, file_format: str
) -> None:
    converted = convert_format(tmp_path, variant, file_format)

    is_untold = variant == "twostage" and file_format.startswith("hf")  # no table, no settings
    assert converted.config.model == ModelConfig(
        variant=VARIANTS[variant],
        num_classes=7,
        num_encoder_layers=2,
        num_decoder_layers=3,
        ffn_dim=64,
        num_queries=300 if is_untold else 20,
        backbone_width=8,
        input_proj_bias=not file_format.startswith("mmdet"),
    )
    assert converted.provenance["source"] == f"{variant}-{file_format}.pth"
    assert converted.provenance["layout"] == {"h": "hugging_face"}.get(file_format[0], file_format)
    assert not build_model(converted).training


def test_the_command_line_writes_a_checkpoint(
    tmp_path: Path, write: Callable[[Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    destination = tmp_path / "converted.safetensors"

    main(["convert", str(write(checkpoint("refine", "mmdet3"))), str(destination)])

    assert "refine, classes: 7, from mmdet3" in capsys.readouterr().out
    assert load_checkpoint(destination).config.model.variant is Variant.REFINE


def _published_base() -> Tensors:
    """Zeros in the shapes of the published base file, grown from the tiny one's listing."""
    grown: Tensors = {}
    for key, tensor in mmdet_tensors("base", "mmdet3").items():
        sizes = {7: 80, 20: 300, 64: 1024} if "backbone" not in key else {}
        shape = [sizes.get(n, n) for n in tensor.shape]
        if key.startswith("backbone"):
            shape[:2] = [n if n == 3 else 8 * n for n in shape[:2]]
        elif key.startswith("neck") and ".conv." in key:
            shape[1] = 8 * tensor.shape[1]
        layer = re.match(r"((?:en|de)coder\.layers\.|bbox_head\.\w+_branches\.)0(.*)", key)
        names = [f"{layer[1]}{i}{layer[2]}" for i in range(6)] if layer else [key]
        grown.update({name: torch.ones(()).expand(shape) for name in names})
    return grown


def test_the_published_base_model_converts_at_full_size(write: Callable[[Any], Path]) -> None:
    tensors = _published_base()
    assert len(tensors) == 610

    converted = convert(write({"state_dict": tensors, "meta": {}}))

    assert converted.config == base()
    assert converted.classes == COCO_CLASSES
    counted = {n: x for n, x in converted.state_dict.items() if ".running_" not in n}
    assert sum(tensor.numel() for tensor in counted.values()) == 40_118_934


def test_heads_that_a_saver_stored_once_are_found(tmp_path: Path) -> None:
    # safetensors files of transformers hold one of several names of a tensor.
    whole = checkpoint("refine", "hf4")
    kept = {k: x.clone() for k, x in whole.items() if not k.startswith("bbox_embed.")}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(kept, path, {"format": "pt"})

    assert_same_tensors(convert(path).state_dict, convert_format(tmp_path, "refine", "hf4"))


def test_one_head_is_enough_for_the_base_variant(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    whole = checkpoint("base", "mmdet2")
    whole["state_dict"] = {
        k: x for k, x in whole["state_dict"].items() if not re.search(r"branches\.[12]\.", k)
    }

    assert_same_tensors(
        convert(write(whole)).state_dict, convert_format(tmp_path, "base", "mmdet2")
    )


def test_class_heads_tied_by_transformers_5_are_set_apart(tmp_path: Path) -> None:
    whole = checkpoint("refine", "hf5")
    kept = {k: x.clone() for k, x in whole.items() if not re.match(r"class_embed\.[12]", k)}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(kept, path)

    state = convert(path).state_dict

    assert torch.equal(state["class_heads.2.weight"], whole["class_embed.0.weight"])


def test_names_and_sizes_beside_a_hugging_face_file_are_used(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    settings = {
        "id2label": {str(i): f"kind {i}" for i in range(7)},
        "two_stage_num_proposals": 20,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))

    converted = convert(write(checkpoint("twostage", "hf4")))

    model = converted.config.model
    assert (model.num_queries, model.num_heads, model.num_points) == (20, 4, 8)
    assert converted.classes[3] == ClassInfo(id=3, name="kind 3")


def test_the_configuration_text_of_mmdet_gives_what_tensors_do_not(
    write: Callable[[Any], Path],
) -> None:
    content = checkpoint("twostage", "mmdet2")
    attention = "dict(type='MultiScaleDeformableAttention', num_heads=4, num_points=8)"
    content["meta"]["config"] = (
        "model = dict(\n  bbox_head=dict(transformer=dict(two_stage_num_proposals=20, "
        f"encoder=dict(attn_cfgs={attention}))))"
    )

    model = convert(write(content)).config.model

    assert (model.num_queries, model.num_heads, model.num_points) == (20, 4, 8)


@pytest.mark.parametrize(("told", "count"), [(90, 90), (300, 140)])
def test_as_many_detections_are_given_as_mmdet_is_told_to(
    write: Callable[[Any], Path], told: int, count: int
) -> None:
    content = checkpoint("base", "mmdet3")
    content["meta"]["cfg"] = f"model = dict(test_cfg=dict(max_per_img={told}))"

    assert convert(write(content)).config.model.num_detections == count  # of 20 queries, 7 classes


def test_half_precision_becomes_float32(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "mmdet2")
    content["state_dict"] = {
        k: x.half() if x.is_floating_point() else x for k, x in content["state_dict"].items()
    }

    converted = convert(write(content))

    assert {tensor.dtype for tensor in converted.state_dict.values()} == {torch.float32}
    assert converted.config == replace(base(), model=converted.config.model)


def test_what_had_to_be_assumed_is_said_in_the_log_and_the_checkpoint(
    write: Callable[[Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    converted = convert(write({"model": authors("base", numbered_head(91))}))

    assumed = converted.provenance["assumed"]
    assert "names none of its outputs, 91 in all: COCO's classes were assumed" in assumed[0]
    assert "does not say how many attention heads it has: 8 were assumed" in assumed[1]
    assert (
        "how many encoder layers the model has: it holds 2, published models have 6" in assumed[2]
    )
    assert (
        "how many decoder layers the model has: it holds 3, published models have 6" in assumed[3]
    )
    assert len(assumed) == 4
    assert all(sentence in caplog.text for sentence in assumed)


def test_a_file_that_lost_layers_without_a_trace_says_how_many_it_holds(
    write: Callable[[Any], Path],
) -> None:
    lost = r"encoder\.layers\.1\.|backbone\.layer3\.5\."

    converted = convert(write(without(checkpoint("base", "mmdet3"), lost)))

    assumed = str(converted.provenance["assumed"])
    assert "how many encoder layers the model has: it holds 1, published" in assumed
    assert "the backbone have 3, 4, 5, 3 blocks in the file, unlike ResNet-50" in assumed


def test_nothing_is_assumed_of_a_file_that_says_it_all(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    content = checkpoint("base", "mmdet3")
    attention = "dict(self_attn_cfg=dict(num_heads=8), cross_attn_cfg=dict(num_points=4))"
    decoder = f"dict(num_layers=3, layer_cfg={attention})"
    content["meta"]["cfg"] = (
        f"model = dict(num_queries=20, encoder=dict(num_layers=2), decoder={decoder})\n"
        "test_pipeline = [dict(type='Resize', scale=(640, 480), keep_ratio=True)]"
    )
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    (tmp_path / "names.json").write_text(json.dumps({"categories": categories}))

    converted = convert(write(content), annotations=tmp_path / "names.json")

    assert converted.provenance["assumed"] == []
    assert converted.config.preprocess.short_side == 480


@pytest.mark.parametrize(
    ("settings", "count"), [({"two_stage_num_proposals": 500}, 500), ({}, 300)]
)
def test_proposals_are_those_of_the_config_or_its_default(
    tmp_path: Path, write: Callable[[Any], Path], settings: dict[str, int], count: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))

    converted = convert(write(checkpoint("twostage", "hf4")))

    assert converted.config.model.num_queries == count
    assert "proposals" not in str(converted.provenance["assumed"])


def test_proposals_that_no_setting_tells_are_assumed_or_given(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    source = write(checkpoint("twostage", "hf4"))
    destination = tmp_path / "x.safetensors"

    assumed = convert(source)
    main(["convert", str(source), str(destination), "--num-queries", "20"])

    given = load_checkpoint(destination)
    assert assumed.config.model.num_queries == 300
    assert "how many proposals it has: 300 were assumed; give" in str(assumed.provenance["assumed"])
    assert "how large images are: a short side of 800" in str(assumed.provenance["assumed"])
    assert given.config.model.num_queries == 20
    assert given.provenance["options"]["num_queries"] == 20
    assert "proposals" not in str(given.provenance["assumed"])


def test_refinement_with_equal_heads_is_known_by_its_setting(
    write: Callable[[Any], Path],
) -> None:
    content = checkpoint("refine", "mmdet3")
    share_one_head(content)
    content["meta"]["cfg"] = "model = dict(num_queries=20, with_box_refine=True)"

    assert convert(write(content)).config.model.variant is Variant.REFINE


def test_tensors_that_share_memory_are_written(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    content = checkpoint("refine", "mmdet3")
    share_one_head(content)
    content["meta"]["cfg"] = "model = dict(num_queries=20, with_box_refine=True)"
    destination = tmp_path / "x.safetensors"

    main(["convert", str(write(content)), str(destination)])

    state = load_checkpoint(destination).state_dict
    assert torch.equal(state["class_heads.2.bias"], state["class_heads.0.bias"])


def test_five_levels_are_read(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "mmdet3")
    content["state_dict"] = _with_five_levels(content["state_dict"])

    converted = convert(write(content))

    assert converted.config.model.num_levels == 5
    assert converted.state_dict["input_proj.4.conv.weight"].shape == (256, 256, 3, 3)
    assert not build_model(converted).training


def _with_five_levels(state: Tensors) -> Tensors:
    """One more level, whose attention reads as the others do."""
    grown = dict(state)
    for leaf in ("weight", "bias"):
        grown[f"neck.extra_convs.1.gn.{leaf}"] = state[f"neck.extra_convs.0.gn.{leaf}"]
    grown["neck.extra_convs.1.conv.weight"] = torch.zeros(256, 256, 3, 3)
    for key, tensor in state.items():
        if key == "level_embed" or "sampling_offsets" in key or "attention_weights" in key:
            grown[key] = torch.cat((tensor, tensor[: len(tensor) // 4]))
    return grown


def test_the_moving_average_of_mmdetection_2_is_converted(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "mmdet2")
    state = content["state_dict"]
    buffers = {f"ema_{key.replace('.', '_')}": x + 1 for key, x in state.items()
               if x.is_floating_point()}  # fmt: skip
    content["state_dict"] = state | buffers

    converted = convert(write(content))

    expected = state["bbox_head.transformer.level_embeds"] + 1
    assert torch.equal(converted.state_dict["level_embed"], expected)
    assert "the moving average is used" in converted.provenance["notes"][0]


@pytest.mark.parametrize("prefix", ["model.", "module.module.", "_orig_mod."])
def test_prefixes_change_nothing(tmp_path: Path, write: Callable[[Any], Path], prefix: str) -> None:
    content = {f"{prefix}{key}": x for key, x in checkpoint("base", "hf4").items()}

    state = convert(write({"state_dict": content})).state_dict

    assert_same_tensors(state, convert_format(tmp_path, "base", "hf4"))
