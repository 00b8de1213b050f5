"""Names of tensors and classes in files of other projects."""

import pytest

from bundle.manifest import ClassInfo
from model.checkpoints.published_layouts import COCO_CLASSES, Layout, find_layout, rename


@pytest.mark.parametrize(
    ("key", "layout", "ours"),
    [
        # The authors number the decoder's norms by definition, not by use.
        ("transformer.decoder.layers.4.norm1.bias", Layout.AUTHORS, "decoder.layers.4.norm2.bias"),
        ("transformer.decoder.layers.4.norm2.bias", Layout.AUTHORS, "decoder.layers.4.norm1.bias"),
        ("transformer.encoder.layers.4.norm1.bias", Layout.AUTHORS, "encoder.layers.4.norm1.bias"),
        ("neck.extra_convs.0.conv.weight", Layout.MMDET3, "input_proj.3.conv.weight"),
        ("bbox_head.reg_branches.5.4.bias", Layout.MMDET2, "box_heads.5.layers.2.bias"),
        (
            "bbox_head.transformer.decoder.layers.10.attentions.1.value_proj.weight",
            Layout.MMDET2,
            "decoder.layers.10.cross_attn.value_proj.weight",
        ),
        ("level_embed", Layout.MMDET3, "level_embed"),
        ("level_embed_2", Layout.MMDET3, None),
        ("neck.extra_convs.1.conv.weight", Layout.MMDET3, "input_proj.4.conv.weight"),
        (
            "model.decoder.layers.0.mlp.fc1.bias",
            Layout.HUGGING_FACE,
            "decoder.layers.0.ffn.linear1.bias",
        ),
        (
            "model.decoder.layers.0.fc1.bias",
            Layout.HUGGING_FACE,
            "decoder.layers.0.ffn.linear1.bias",
        ),
    ],
)
def test_a_tensor_has_our_name_or_none(key: str, layout: Layout, ours: str | None) -> None:
    assert rename(key, layout) == ours


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("bbox_head.transformer.level_embeds", Layout.MMDET2),
        ("bbox_head.cls_branches.0.bias", Layout.MMDET3),
        ("transformer.encoder.layers.0.norm1.bias", Layout.AUTHORS),
        ("model.encoder.layers.0.fc1.bias", Layout.HUGGING_FACE),
        ("encoder.layers.0.norm1.bias", None),  # ours
    ],
)
def test_a_layout_is_known_by_its_names(key: str, layout: Layout | None) -> None:
    assert find_layout({"x", key}) is layout


def test_coco_has_80_classes_with_ten_gaps_in_their_ids() -> None:
    ids = [entry.id for entry in COCO_CLASSES]

    assert len(COCO_CLASSES) == 80
    assert set(range(1, 91)) - set(ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert ids == sorted(ids)
    assert COCO_CLASSES[79] == ClassInfo(id=90, name="toothbrush")
    assert COCO_CLASSES[9].name == "traffic light"
