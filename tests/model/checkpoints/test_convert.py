"""Published files of every layout become the same checkpoint, or are refused by name."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

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
    SEED,
    checkpoint,
    hf_tensors,
    mmdet_tensors,
)

VARIANTS = {"base": Variant.BASE, "refine": Variant.REFINE, "twostage": Variant.TWO_STAGE}
variants = pytest.mark.parametrize("variant", SEED)
Tensors = dict[str, Tensor]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Puts an object into a file as torch.save does."""

    def write(content: Any) -> Path:
        path = tmp_path / "published.pth"
        torch.save(content, path)
        return path

    return write


def _authors(variant: str, heads: Callable[[str, Tensor], Tensor]) -> Tensors:
    """Tensors of the authors' file with every class head replaced."""
    return {
        key: heads(key, tensor) if "class_embed." in key else tensor
        for key, tensor in checkpoint(variant, "authors")["model"].items()
    }


def _numbered_head(outputs: int) -> Callable[[str, Tensor], Tensor]:
    """Class heads whose row r is all r, with the head's index for fraction."""

    def head(key: str, old: Tensor) -> Tensor:
        fraction = int(re.findall(r"class_embed\.(\d)", key)[0]) / 8
        rows = torch.arange(outputs, dtype=torch.float32) + fraction
        return rows if old.ndim == 1 else rows[:, None].expand(-1, old.shape[1]).clone()

    return head


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


def convert_format(directory: Path, variant: str, file_format: str) -> Any:
    path = directory / f"{variant}-{file_format}.pth"
    torch.save(checkpoint(variant, file_format), path)
    return convert(path)


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

    assert "refine, 7 classes, from mmdet3" in capsys.readouterr().out
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
        grown.update({name: torch.zeros(()).expand(shape) for name in names})
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


def assert_same_tensors(found: Tensors, expected: Any) -> None:
    assert found.keys() == expected.state_dict.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.state_dict.items())


@variants
def test_91_outputs_become_the_80_classes_of_coco(
    write: Callable[[Any], Path], variant: str
) -> None:
    converted = convert(write({"model": _authors(variant, _numbered_head(91))}))

    ids = torch.tensor([float(entry.id) for entry in COCO_CLASSES])
    state = converted.state_dict
    assert converted.classes == COCO_CLASSES
    assert converted.config.model.num_classes == 80
    assert torch.equal(state["class_heads.0.bias"], ids)
    assert torch.equal(state["class_heads.0.weight"], ids[:, None].expand(-1, 256))


def test_the_encoder_head_keeps_its_output_0(write: Callable[[Any], Path]) -> None:
    converted = convert(write({"model": _authors("twostage", _numbered_head(91))}))

    bias = converted.state_dict["queries.class_head.bias"]
    assert bias.shape == (80,)
    assert bias[:4].tolist() == [0 + 3 / 8, 2 + 3 / 8, 3 + 3 / 8, 4 + 3 / 8]  # head 3 of 0..3


def test_class_names_of_mmdet_are_kept_with_ids_from_1(write: Callable[[Any], Path]) -> None:
    converted = convert(write(checkpoint("base", "mmdet2")))

    assert [entry.name for entry in converted.classes] == list(NAMES)
    assert [entry.id for entry in converted.classes] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("spelling", ["classes", "CLASSES"])
def test_coco_names_of_mmdet_get_coco_ids(write: Callable[[Any], Path], spelling: str) -> None:
    content = checkpoint("base", "mmdet3")
    for key, tensor in content["state_dict"].items():
        if "cls_branches" in key:
            content["state_dict"][key] = torch.zeros(80, *tensor.shape[1:])
    content["meta"] = {"dataset_meta": {spelling: [entry.name for entry in COCO_CLASSES]}}

    assert convert(write(content)).classes == COCO_CLASSES


def test_outputs_of_the_authors_are_category_ids(write: Callable[[Any], Path]) -> None:
    converted = convert(write(checkpoint("base", "authors")))

    assert converted.classes[0] == ClassInfo(id=0, name="class 0")
    assert converted.classes[6] == ClassInfo(id=6, name="class 6")


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


def _annotations(directory: Path, ids: list[int]) -> Path:
    path = directory / "instances.json"
    categories = [{"id": i, "name": f"thing {i}", "supercategory": "x"} for i in ids]
    path.write_text(json.dumps({"categories": categories, "images": [], "annotations": []}))
    return path


def test_an_annotation_file_names_the_outputs(tmp_path: Path, write: Callable[[Any], Path]) -> None:
    ids = [3, 5, 7, 9, 11, 13, 15]

    converted = convert(
        write(checkpoint("base", "mmdet2")), annotations=_annotations(tmp_path, ids)
    )

    assert [entry.id for entry in converted.classes] == ids
    assert converted.provenance["options"]["classes"] == "instances.json"


def test_an_annotation_file_picks_the_outputs_of_the_authors_heads(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    source = write({"model": _authors("base", _numbered_head(7))})

    converted = convert(source, annotations=_annotations(tmp_path, [1, 2, 4]))

    assert converted.state_dict["class_heads.0.bias"].tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"categories": [{"id": 1}]}'])
def test_a_file_of_class_names_must_be_coco_annotations(
    tmp_path: Path, write: Callable[[Any], Path], text: str
) -> None:
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(ValueError, match=r"x\.json is no COCO annotation file"):
        convert(write(checkpoint("base", "mmdet2")), annotations=tmp_path / "x.json")


def test_settings_beside_a_hugging_face_file_must_be_json(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    (tmp_path / "config.json").write_text("{")

    with pytest.raises(ValueError, match=r"config\.json, beside the weights, is not valid JSON"):
        convert(write(checkpoint("base", "hf4")))


def test_too_few_names_are_refused(tmp_path: Path, write: Callable[[Any], Path]) -> None:
    source = write(checkpoint("base", "mmdet2"))

    with pytest.raises(ValueError, match=r"has 7 classes, but 2 are named.*--classes"):
        convert(source, annotations=_annotations(tmp_path, [1, 2]))


def test_heads_that_cannot_be_are_refused(write: Callable[[Any], Path]) -> None:
    with pytest.raises(ValueError, match=r"128 attention weights.*over 3 heads and 4 levels"):
        convert(write(checkpoint("base", "mmdet2")), num_heads=3)


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_first_missing_tensor_is_named(write: Callable[[Any], Path], file_format: str) -> None:
    content = checkpoint("refine", file_format)
    tensors = content.get("state_dict", content.get("model", content))
    lost = next(key for key in tensors if "decoder.layers.1." in key and "value_proj.bias" in key)
    del tensors[lost]

    with pytest.raises(
        ValueError, match=r"tensor decoder\.layers\.1\.cross_attn\.value_proj\.bias .*is missing"
    ):
        convert(write(content))


@pytest.mark.parametrize("lost", ["level_embed", "backbone.conv1.weight"])
def test_a_missing_tensor_that_sizes_are_read_off_is_named(
    write: Callable[[Any], Path], lost: str
) -> None:
    content = checkpoint("base", "mmdet3")
    del content["state_dict"][lost]

    with pytest.raises(ValueError, match=rf"tensor {lost} is missing"):
        convert(write(content))


@pytest.mark.parametrize("extra", ["bbox_head.conv.weight", "encoder.layers.0.norms.7.weight"])
def test_a_tensor_left_over_is_named(write: Callable[[Any], Path], extra: str) -> None:
    content = checkpoint("base", "mmdet3")
    content["state_dict"][extra] = torch.zeros(2)

    with pytest.raises(ValueError, match=rf"tensor {extra} .*is left over"):
        convert(write(content))


def test_a_tensor_of_another_shape_is_named(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "mmdet3")
    content["state_dict"]["neck.convs.1.gn.bias"] = torch.zeros(5)

    with pytest.raises(ValueError, match=r"input_proj\.1\.norm\.bias has shape \(5,\).*\(256,\)"):
        convert(write(content))


def test_a_tensor_that_is_not_finite_is_named(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "mmdet3")
    content["state_dict"]["neck.convs.1.gn.bias"] = torch.full((256,), math.nan)

    with pytest.raises(ValueError, match=r"tensor input_proj\.1\.norm\.bias holds a value"):
        convert(write(content))


def test_second_copies_of_heads_must_be_equal(write: Callable[[Any], Path]) -> None:
    content = checkpoint("refine", "authors")
    key = "transformer.decoder.bbox_embed.1.layers.2.bias"
    content["model"][key] = content["model"][key] + 1

    with pytest.raises(ValueError, match=r"box_heads\.1\.layers\.2\.bias is there twice"):
        convert(write(content))


def test_a_single_scale_model_is_refused(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "authors")
    content["model"]["transformer.level_embed"] = torch.zeros(1, 256)

    with pytest.raises(ValueError, match="single-scale model"):
        convert(write(content))


def test_a_file_of_another_model_is_refused(write: Callable[[Any], Path]) -> None:
    with pytest.raises(ValueError, match=r"no known layout.*first tensors are: fc\.weight"):
        convert(write({"fc.weight": torch.zeros(2, 2)}))


def test_a_checkpoint_of_this_project_is_not_converted_again(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    ours = tmp_path / "ours.safetensors"
    main(["convert", str(write(checkpoint("base", "mmdet2"))), str(ours)])

    with pytest.raises(ValueError, match="checkpoint of this project already"):
        convert(ours)


def test_half_precision_becomes_float32(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "mmdet2")
    content["state_dict"] = {
        k: x.half() if x.is_floating_point() else x for k, x in content["state_dict"].items()
    }

    converted = convert(write(content))

    assert {tensor.dtype for tensor in converted.state_dict.values()} == {torch.float32}
    assert converted.config == replace(base(), model=converted.config.model)


UNSORTED = Path("tests/data/cases/unsorted-ids/classes.json")


def test_outputs_with_ids_in_any_order_are_told_when_converted(
    tmp_path: Path, write: Callable[[Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write({"model": _authors("base", _numbered_head(3))})
    destination = tmp_path / "x.safetensors"

    main(["convert", str(source), str(destination), "--classes", str(UNSORTED)])

    converted = load_checkpoint(destination)
    printed = capsys.readouterr().out
    assert (
        "output -> id -> name\n     0 -> 0 -> bolt\n     1 -> 1 -> nut\n     2 -> 2 -> w" in printed
    )
    assert [entry.name for entry in converted.classes] == ["bolt", "nut", "washer"]
    assert converted.state_dict["class_heads.0.bias"].tolist() == [0.0, 1.0, 2.0]


def test_own_names_of_a_hugging_face_head_of_91_win_over_coco(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    names = {str(i): f"kind {i}" for i in range(91)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    authors = _authors("base", _numbered_head(91))

    converted = convert(write(hf_tensors(authors, version=4)))

    assert converted.classes[90] == ClassInfo(id=90, name="kind 90")
    assert converted.config.model.num_classes == 91


def test_what_had_to_be_assumed_is_said_in_the_log_and_the_checkpoint(
    write: Callable[[Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    converted = convert(write({"model": _authors("base", _numbered_head(91))}))

    assumed = converted.provenance["assumed"]
    assert "names none of its 91 outputs: COCO's classes were taken" in assumed[0]
    assert "does not tell its attention heads: 8 were taken" in assumed[1]
    assert all(sentence in caplog.text for sentence in assumed)


def test_nothing_is_assumed_of_a_file_that_says_it_all(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    content = checkpoint("base", "mmdet3")
    attention = "dict(self_attn_cfg=dict(num_heads=8), cross_attn_cfg=dict(num_points=4))"
    content["meta"]["cfg"] = f"model = dict(num_queries=20, decoder=dict(layer_cfg={attention}))"
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    (tmp_path / "names.json").write_text(json.dumps({"categories": categories}))

    converted = convert(write(content), annotations=tmp_path / "names.json")

    assert converted.provenance["assumed"] == []


@pytest.mark.parametrize(("name", "value"), [("activation_function", "gelu"), ("dilation", True)])
def test_other_arithmetic_of_hugging_face_is_refused(
    tmp_path: Path, write: Callable[[Any], Path], name: str, value: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({name: value}))

    with pytest.raises(ValueError, match=rf"published\.pth: config\.json says {name} = {value!r}"):
        convert(write(checkpoint("base", "hf4")))


def test_other_arithmetic_of_the_authors_is_refused(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "authors")
    content["args"].dilation = True

    with pytest.raises(ValueError, match="args says dilation = True"):
        convert(write(content))


def test_other_arithmetic_of_mmdetection_is_refused(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "mmdet3")
    content["meta"]["cfg"] = "model = dict(backbone=dict(style='caffe'))"

    with pytest.raises(ValueError, match=r"model\.backbone, says style = 'caffe'"):
        convert(write(content))


def test_sizes_of_another_model_are_refused(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "authors")
    content["args"].enc_layers = 6

    with pytest.raises(ValueError, match="enc_layers = 6, but by the tensors it is 2"):
        convert(write(content))


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
    assert "two-stage proposals: 300 were taken; give" in str(assumed.provenance["assumed"])
    assert given.config.model.num_queries == 20
    assert given.provenance["options"]["num_queries"] == 20
    assert "proposals" not in str(given.provenance["assumed"])


def test_another_number_of_learned_queries_is_refused(write: Callable[[Any], Path]) -> None:
    with pytest.raises(ValueError, match="--num-queries is 30, but the file has a table of 20"):
        convert(write(checkpoint("base", "mmdet2")), num_queries=30)


def test_heads_that_contradict_the_file_are_refused(write: Callable[[Any], Path]) -> None:
    with pytest.raises(ValueError, match="args says nheads = 8, but --num-heads is 4"):
        convert(write(checkpoint("base", "authors")), num_heads=4)


def _share_one_head(content: dict[str, Any]) -> None:
    """All class and box heads become the first."""
    state = content["state_dict"]
    for key in [key for key in state if "_branches." in key]:
        state[key] = state[re.sub(r"branches\.\d+", "branches.0", key)]


def test_two_stages_without_refinement_are_refused(write: Callable[[Any], Path]) -> None:
    content = checkpoint("twostage", "mmdet3")
    _share_one_head(content)

    with pytest.raises(ValueError, match=r"two-stage model.*with_box_refine = False"):
        convert(write(content))


def test_refinement_with_equal_heads_is_known_by_its_setting(
    write: Callable[[Any], Path],
) -> None:
    content = checkpoint("refine", "mmdet3")
    _share_one_head(content)
    content["meta"]["cfg"] = "model = dict(num_queries=20, with_box_refine=True)"

    assert convert(write(content)).config.model.variant is Variant.REFINE


def test_tensors_that_share_memory_are_written(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    content = checkpoint("refine", "mmdet3")
    _share_one_head(content)
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
    assert "the moving average was taken" in converted.provenance["notes"][0]


@pytest.mark.parametrize("prefix", ["model.", "module.module.", "_orig_mod."])
def test_prefixes_change_nothing(tmp_path: Path, write: Callable[[Any], Path], prefix: str) -> None:
    content = {f"{prefix}{key}": x for key, x in checkpoint("base", "hf4").items()}

    state = convert(write({"state_dict": content})).state_dict

    assert_same_tensors(state, convert_format(tmp_path, "base", "hf4"))
