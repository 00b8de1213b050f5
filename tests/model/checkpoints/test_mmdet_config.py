"""Configurations of mmdetection: read as text, never run; other arithmetic is refused by name."""

from typing import Any

import pytest

from model.checkpoints.mmdet_config import average_is_in_weights, from_mmdet, read_config

VERSION_2 = """
model = dict(
    type='DeformableDETR',
    backbone=dict(type='ResNet', depth=50, num_stages=4, out_indices=(1, 2, 3),
                  norm_cfg=dict(type='BN', requires_grad=False), style='pytorch'),
    neck=dict(type='ChannelMapper', kernel_size=1, act_cfg=None, num_outs=4),
    bbox_head=dict(
        num_query=100, num_classes=80, as_two_stage=True, with_box_refine=True,
        transformer=dict(
            type='DeformableDetrTransformer',
            encoder=dict(
                num_layers=6,
                transformerlayers=dict(
                    attn_cfgs=dict(type='MultiScaleDeformableAttention', embed_dims=256),
                    feedforward_channels=1024,
                    operation_order=('self_attn', 'norm', 'ffn', 'norm'))),
            decoder=dict(
                num_layers=6,
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(type='MultiheadAttention', embed_dims=256, num_heads=8),
                        dict(type='MultiScaleDeformableAttention', embed_dims=256)],
                    operation_order=('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm')))),
        positional_encoding=dict(type='SinePositionalEncoding', num_feats=128, normalize=True,
                                 offset=-0.5)))
test_pipeline = [dict(type='Normalize', mean=[123.675, 116.28, 103.53],
                      std=[58.395, 57.12, 57.375], to_rgb=True)]
"""
VERSION_3 = """
model = dict(
    type='DeformableDETR', num_queries=300, num_feature_levels=4, with_box_refine=True,
    as_two_stage=True,
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                           bgr_to_rgb=True, pad_size_divisor=1),
    backbone=dict(type='ResNet', depth=50, style='pytorch'),
    neck=dict(type='ChannelMapper', kernel_size=1, act_cfg=None, num_outs=4),
    encoder=dict(num_layers=6, layer_cfg=dict(
        self_attn_cfg=dict(embed_dims=256, batch_first=True),
        ffn_cfg=dict(embed_dims=256, feedforward_channels=1024))),
    decoder=dict(num_layers=6, layer_cfg=dict(
        self_attn_cfg=dict(embed_dims=256, num_heads=8),
        cross_attn_cfg=dict(embed_dims=256),
        ffn_cfg=dict(embed_dims=256, feedforward_channels=1024))),
    positional_encoding=dict(num_feats=128, normalize=True, offset=-0.5),
    bbox_head=dict(type='DeformableDETRHead', num_classes=80))
"""
VERSIONS = {"2": VERSION_2, "3": VERSION_3}
versions = pytest.mark.parametrize("version", VERSIONS)


@versions
def test_sizes_of_a_published_configuration_are_read(version: str) -> None:
    settings = from_mmdet({"cfg": VERSIONS[version], "CLASSES": ("cat", "dog")})

    assert settings.class_names == ("cat", "dog")
    assert settings.get("num_heads") == 8
    assert settings.get("num_points") == 4
    assert settings.get("ffn_dim") == 1024
    assert settings.get("num_encoder_layers") == 6
    assert settings.get("num_proposals") == 300  # in 2.x not the number of queries
    assert settings.get("with_box_refine") is True


@pytest.mark.parametrize(
    ("version", "old", "new", "message"),
    [
        ("2", "style='pytorch'", "style='caffe'", "backbone, says style = 'caffe'"),
        ("3", "style='pytorch'", "style='caffe'", "backbone, says style = 'caffe'"),
        ("2", "type='ResNet'", "type='ResNeXt'", "type = 'ResNeXt'"),
        ("2", "depth=50", "dilations=(1, 1, 1, 2)", r"dilations = \(1, 1, 1, 2\)"),
        ("3", "depth=50", "strides=(1, 2, 2, 1)", r"strides = \(1, 2, 2, 1\)"),
        ("2", "depth=50", "avg_down=True", "avg_down = True"),
        ("3", "type='ChannelMapper'", "type='FPN'", "type = 'FPN'"),
        ("2", "act_cfg=None, ", "", "act_cfg = {'type': 'ReLU'}"),
        ("2", "normalize=True", "normalize=False", "positional_encoding, says normalize = False"),
        ("3", ", offset=-0.5", "", "positional_encoding, says offset = 0.0"),
        ("2", "to_rgb=True", "to_rgb=False", "to_rgb = False"),
        ("3", "bgr_to_rgb=True", "bgr_to_rgb=False", "bgr_to_rgb = False"),
        ("3", "mean=[123.675, 116.28, 103.53]", "mean=[0, 0, 0]", r"mean = \(0, 0, 0\)"),
        ("2", "('self_attn', 'norm', 'ffn', 'norm')", "('norm', 'self_attn', 'norm', 'ffn')",
         "operation_order"),
        ("3", "feedforward_channels=1024", "act_cfg=dict(type='GELU')", "act_cfg = 'GELU'"),
        ("2", "act_cfg=None", "act_cfg=None, norm_cfg=dict(type='GN', num_groups=16)",
         "neck.norm_cfg, says num_groups = 16"),
        ("3", "style='pytorch'", "norm_cfg=dict(type='BN', eps=1e-3)", "cfg, says eps = 0.001"),
        ("3", "cross_attn_cfg=dict(embed_dims=256)", "norm_cfg=dict(type='LN', eps=1e-6)", "eps"),
        ("3", "feedforward_channels=1024", "add_identity=False", "add_identity = False"),
        ("2", "num_classes=80", "loss_cls=dict(type='CrossEntropyLoss')", "use_sigmoid = False"),
        ("3", "num_classes=80", "loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False)",
         "loss_cls, says use_sigmoid = False"),
        ("2", "[dict(type='Norm", "[dict(color_type='grayscale'), dict(type='Norm", "color_type"),
        ("2", "num_heads=8", "num_heads=4", "num_heads = 4 and .* num_heads of the encoder = 8"),
        ("3", "cross_attn_cfg=dict(embed_dims=256)", "cross_attn_cfg=dict(num_points=8)",
         "num_points"),
    ],
)  # fmt: skip
def test_a_setting_of_other_arithmetic_is_refused_by_name(
    version: str, old: str, new: str, message: str
) -> None:
    assert old in VERSIONS[version]

    with pytest.raises(ValueError, match=rf"meta\.cfg.*{message}.* supported"):
        from_mmdet({"cfg": VERSIONS[version].replace(old, new)})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("style='pytorch'", "norm_cfg=dict(type='SyncBN', requires_grad=True, eps=1e-05)"),
        ("act_cfg=None", "act_cfg=None, norm_cfg=dict(type='GN', num_groups=32)"),
        ("feedforward_channels=1024", "add_identity=True"),
        ("num_classes=80", "loss_cls=dict(type='FocalLoss', gamma=2.0)"),
        ("num_classes=80", "loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True)"),
    ],
)
def test_a_setting_of_the_same_arithmetic_is_accepted(old: str, new: str) -> None:
    assert old in VERSION_3

    assert from_mmdet({"cfg": VERSION_3.replace(old, new)}).get("num_queries") == 300


def test_queries_of_version_3_are_its_proposals_too() -> None:
    text = VERSION_3.replace("num_queries=300", "num_queries=500")

    assert from_mmdet({"cfg": text}).get("num_proposals") == 500


def test_a_configuration_may_be_a_dict() -> None:
    model = {"num_queries": 20, "backbone": {"style": "caffe"}}

    with pytest.raises(ValueError, match="style"):
        from_mmdet({"cfg": {"model": model}})


@pytest.mark.parametrize("text", ["", "model = dict(", "model = build()", "x = 3", None, 7])
def test_a_text_that_tells_nothing_is_passed_over(text: Any) -> None:
    assert from_mmdet({"cfg": text}).values == {}


def test_nothing_in_the_text_is_run() -> None:
    text = "model = dict(num_queries=open('/nowhere'), x=[1, __import__('os')])"

    assert read_config({"cfg": text}) == {"model": {"num_queries": None, "x": (1, None)}}


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("dict(type='ExpMomentumEMAHook', priority=49)", True),
        ("dict(type='EMAHook', priority='HIGH')", True),
        ("dict(type='EMAHook', priority='NORMAL')", False),
        ("dict(type='EMAHook')", False),
        ("dict(type='NumClassCheckHook')", False),
    ],
)
def test_the_priority_of_the_hook_tells_where_the_average_lies(hook: str, expected: bool) -> None:
    assert average_is_in_weights({"config": f"custom_hooks = [{hook}]"}) is expected


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"CLASSES": 5}, "the classes are 5, expected a list of names"),
        ({"CLASSES": "bolt"}, "the classes are 'bolt', expected a list of names"),
        ({"dataset_meta": [1]}, r"dataset_meta is \[1\], expected a dict"),
        ({"cfg": "model = dict(x=dict(operation_order=5))"}, "operation_order = 5"),
        ({"cfg": "model = dict(num_queries='20')"}, "num_queries = '20', expected a whole number"),
    ],
)
def test_metadata_of_another_form_is_refused_by_name(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_mmdet(meta)
