"""Settings of published files: sizes are read, other arithmetic is refused by name."""

import argparse
import math
from typing import Any

import pytest

from model.checkpoints.published_settings import from_authors, from_hugging_face


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_function", "gelu"),
        ("dilation", True),
        ("position_embedding_type", "learned"),
        ("model_type", "detr"),
        ("backbone", "resnet50d"),
        ("backbone", "resnetaa50"),
        ("backbone", "swin_tiny_patch4_window7_224"),
        ("num_channels", 1),
        ("backbone_kwargs", {"output_stride": 16}),
        ("backbone_config", {"backbone": "convnext_tiny"}),
        ("backbone_config", {"backbone": "resnet50", "output_stride": 16}),
        ("backbone_config", {"model_type": "resnet", "hidden_act": "gelu"}),
        ("backbone_config", {"backbone": "resnet50", "num_channels": 1}),
        ("backbone_kwargs", {"act_layer": "silu"}),
    ],
)
def test_hugging_face_settings_of_other_arithmetic_are_refused_by_name(
    name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=rf"config\.json.*{name.split('_')[0]}.*only .* supported"):
        from_hugging_face({name: value})


def test_a_config_of_the_published_model_is_accepted() -> None:
    settings = from_hugging_face(
        {
            "model_type": "deformable_detr",
            "activation_function": "relu",
            "auxiliary_loss": False,
            "backbone": "resnet50",
            "d_model": 256,
            "decoder_attention_heads": 8,
            "dilation": False,
            "disable_custom_kernels": True,
            "num_queries": 300,
            "num_feature_levels": 4,
            "with_box_refine": True,
            "position_embedding_type": "sine",
        }
    )

    assert settings.get("num_heads") == 8
    assert settings.get("num_queries") == 300
    assert settings.get("with_box_refine") is True


def test_null_in_a_config_is_the_default() -> None:
    # transformers 5 writes most of these into every config.json.
    backbone = {"model_type": "timm_backbone", "backbone": "resnet50", "num_channels": 3,
                "out_indices": [2, 3, 4], "output_stride": None}  # fmt: skip
    names = ("dilation", "position_embedding_type", "activation_function", "backbone",
             "backbone_kwargs", "encoder_attention_heads", "id2label")  # fmt: skip

    settings = from_hugging_face({"backbone_config": backbone, **dict.fromkeys(names)})

    assert settings == from_hugging_face({})


@pytest.mark.parametrize("auxiliary_loss", [True, False])
def test_a_flag_of_the_loss_changes_nothing(auxiliary_loss: bool) -> None:
    assert from_hugging_face({"auxiliary_loss": auxiliary_loss}) == from_hugging_face({})


@pytest.mark.parametrize(("config", "count"), [({"two_stage_num_proposals": 500}, 500), ({}, 300)])
def test_proposals_of_hugging_face_have_their_own_setting(
    config: dict[str, Any], count: int
) -> None:
    assert from_hugging_face({"num_queries": 20, **config}).get("num_proposals") == count


def test_decoder_heads_left_out_are_those_of_the_default() -> None:
    message = "encoder_attention_heads = 4 and decoder_attention_heads = 8"
    with pytest.raises(ValueError, match=message):
        from_hugging_face({"encoder_attention_heads": 4})


def test_sampling_points_of_encoder_and_decoder_must_agree() -> None:
    with pytest.raises(ValueError, match="encoder_n_points = 4 and decoder_n_points = 8"):
        from_hugging_face({"encoder_n_points": 4, "decoder_n_points": 8})


def test_names_are_read_by_output_and_placeholders_are_none() -> None:
    names = {"10": "k", "2": "c", **{str(i): "x" for i in (0, 1, 3, 4, 5, 6, 7, 8, 9)}}

    settings = from_hugging_face({"id2label": names})
    unnamed = from_hugging_face({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}})

    assert settings.class_names is not None
    assert (settings.class_names[2], settings.class_names[10]) == ("c", "k")
    assert unnamed.class_names is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dilation", True),
        ("position_embedding", "learned"),
        ("position_embedding_scale", 20.0),
        ("masks", True),
        ("pre_norm", True),
        ("activation", "gelu"),
        ("backbone", "resnet18"),
    ],
)
def test_settings_of_the_authors_of_other_arithmetic_are_refused_by_name(
    name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=rf"args says {name} = .*only .* supported"):
        from_authors(argparse.Namespace(**{name: value}))


def test_the_published_command_line_is_accepted() -> None:
    args = argparse.Namespace(
        nheads=8, num_queries=300, dec_n_points=4, enc_n_points=4, num_feature_levels=4,
        dilation=False, position_embedding="sine", position_embedding_scale=2 * math.pi,
        masks=False, backbone="resnet50", with_box_refine=True, two_stage=False, lr=2e-4,
    )  # fmt: skip

    settings = from_authors(args)

    assert settings.get("num_heads") == 8
    assert settings.get("num_points") == 4
    assert settings.get("num_proposals") == 300


def test_the_authors_have_two_names_for_sine_encodings() -> None:
    assert from_authors({"position_embedding": "v2"}) == from_authors({})


def test_points_of_the_authors_must_agree() -> None:
    with pytest.raises(ValueError, match="enc_n_points = 4 and dec_n_points = 8"):
        from_authors(argparse.Namespace(enc_n_points=4, dec_n_points=8))


def test_a_size_that_differs_from_the_tensors_is_named() -> None:
    settings = from_authors({"num_feature_levels": 4})

    with pytest.raises(ValueError, match="num_feature_levels = 4, but by the tensors it is 5"):
        settings.require({"num_levels": 5})


@pytest.mark.parametrize("value", ["8", 0, -8, 2.0, True, [8], "eight"])
def test_a_size_that_is_not_a_count_is_refused_by_name(value: Any) -> None:
    message = r"says {} = .*, expected a whole number of at least 1"

    with pytest.raises(ValueError, match=message.format("decoder_n_points")):
        from_hugging_face({"decoder_n_points": value})
    with pytest.raises(ValueError, match=message.format("nheads")):
        from_authors({"nheads": value})


@pytest.mark.parametrize("value", [1, "true", [True]])
def test_a_flag_that_is_none_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"says two_stage = .*, expected True or False"):
        from_hugging_face({"two_stage": value})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": ["a", "b"]}, r"id2label is \['a', 'b'\], expected names by number"),
        ({"id2label": {"a": "x"}}, r"id2label is \{'a': 'x'\}, expected names by number"),
        ({"backbone_config": "x"}, "backbone_config = 'x', expected an object"),
        ({"backbone_kwargs": [1]}, r"backbone_kwargs = \[1\], expected an object"),
    ],
)
def test_a_setting_of_another_form_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_hugging_face(config)
