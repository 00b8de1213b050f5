"""Published files that cannot be converted are refused, and the message names what is wrong."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import main
from model.checkpoints.convert import convert
from tests.data.parity.make_checkpoint import (
    FORMATS,
    checkpoint,
)
from tests.model.checkpoints.published import (
    share_one_head,
    without,
)

one_format_each = pytest.mark.parametrize(
    ("variant", "file_format"), [("base", "mmdet3"), ("refine", "authors"), ("twostage", "hf4")]
)


def test_settings_beside_a_hugging_face_file_must_be_json(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    (tmp_path / "config.json").write_text("{")

    with pytest.raises(ValueError, match=r"beside the weights, .*config\.json: not valid JSON"):
        convert(write(checkpoint("base", "hf4")))


def test_heads_that_cannot_be_are_refused(write: Callable[[Any], Path]) -> None:
    with pytest.raises(ValueError, match=r"128 attention weights.*num_heads=3 and num_levels=4"):
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


@one_format_each
def test_a_file_that_lost_its_last_decoder_layer_is_refused(
    write: Callable[[Any], Path], variant: str, file_format: str
) -> None:
    content = without(checkpoint(variant, file_format), r"decoder\.layers\.2\.")

    with pytest.raises(ValueError, match=r"3 class heads for 2 decoder|_heads.* is left over"):
        convert(write(content))


@one_format_each
@pytest.mark.parametrize("kind", ["class|cls", "bbox|reg"])
def test_a_file_that_lost_its_last_head_is_refused(
    write: Callable[[Any], Path], variant: str, file_format: str, kind: str
) -> None:
    last = 3 if variant == "twostage" else 2
    lost = rf"({kind})_(embed|branches)\.{last}\."

    with pytest.raises(ValueError, match=r"2 (class|box) heads for 3|_head.* is missing"):
        convert(write(without(checkpoint(variant, file_format), lost)))


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


@pytest.mark.parametrize(
    ("key", "factor", "message"),
    [
        ("decoder.layers.2.cross_attn.value_proj.weight", 0, "nothing but zeros"),
        ("encoder.layers.1.ffn.layers.0.0.weight", 0, "nothing but zeros"),
        ("decoder.layers.0.self_attn.attn.in_proj_weight", 0, "nothing but zeros"),
        ("backbone.layer4.0.conv2.weight", 0, "nothing but zeros"),
        ("backbone.bn1.running_var", 0, "nothing but zeros"),
        ("backbone.bn1.running_var", -1, "a negative variance"),
    ],
)
def test_a_file_with_a_gap_is_refused(
    write: Callable[[Any], Path], key: str, factor: int, message: str
) -> None:
    content = checkpoint("base", "mmdet3")
    content["state_dict"][key] = content["state_dict"][key] * factor

    with pytest.raises(ValueError, match=rf"tensor .* holds {message}"):
        convert(write(content))


def test_second_copies_of_heads_must_be_equal(write: Callable[[Any], Path]) -> None:
    content = checkpoint("refine", "authors")
    key = "transformer.decoder.bbox_embed.1.layers.2.bias"
    content["model"][key] = content["model"][key] + 1

    with pytest.raises(ValueError, match=r"box_heads\.1\.layers\.2\.bias appears twice"):
        convert(write(content))


def test_a_single_scale_model_is_refused(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "authors")
    content["model"]["transformer.level_embed"] = torch.zeros(1, 256)

    with pytest.raises(ValueError, match="too few feature levels: 1"):
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


def test_another_number_of_learned_queries_is_refused(write: Callable[[Any], Path]) -> None:
    with pytest.raises(ValueError, match="--num-queries is 30, but the file has a table of 20"):
        convert(write(checkpoint("base", "mmdet2")), num_queries=30)


def test_heads_that_contradict_the_file_are_refused(write: Callable[[Any], Path]) -> None:
    with pytest.raises(ValueError, match="args says nheads = 8, but --num-heads is 4"):
        convert(write(checkpoint("base", "authors")), num_heads=4)


def test_two_stages_without_refinement_are_refused(write: Callable[[Any], Path]) -> None:
    content = checkpoint("twostage", "mmdet3")
    share_one_head(content)

    with pytest.raises(ValueError, match=r"two-stage model.*with_box_refine = False"):
        convert(write(content))
