"""How images of published models are sized and normalised: followed, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.preprocess import Preprocess
from model.checkpoints.mmdet_config import from_mmdet
from model.checkpoints.published_file import read_settings
from model.checkpoints.published_layouts import Layout
from model.checkpoints.published_preprocess import from_preprocessor_config


def test_the_published_preprocessing_is_our_default() -> None:
    config = {
        "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "format": "coco_detection", "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "resample": 2, "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 1333, "shortest_edge": 800},
    }  # fmt: skip

    assert from_preprocessor_config(config) == Preprocess()
    assert from_preprocessor_config({}) == Preprocess()


@pytest.mark.parametrize(
    ("config", "sides"),
    [
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, (480, 640)),
        ({"size": 600, "max_size": 1000}, (600, 1000)),
        ({"size": 600}, (600, 1333)),
        ({"size": {"shortest_edge": 480}, "max_size": 640}, (480, 640)),
        ({"size": {"max_height": 640, "max_width": 640}}, (640, 640)),
    ],
)
def test_sides_are_read(config: dict[str, Any], sides: tuple[int, int]) -> None:
    preprocess = from_preprocessor_config(config)

    assert (preprocess.short_side, preprocess.long_side) == sides


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}, 127.5, 127.5),
        ({"do_normalize": False}, 0.0, 255.0),
        ({"do_normalize": False, "do_rescale": False}, 0.0, 1.0),
        ({"do_rescale": False, "image_mean": [127, 127, 127], "image_std": [64, 64, 64]}, 127, 64),
    ],
)
def test_mean_and_deviation_are_of_pixels_up_to_255(
    config: dict[str, Any], mean: float, std: float
) -> None:
    preprocess = from_preprocessor_config(config)

    assert (preprocess.mean, preprocess.std) == ((mean,) * 3, (std,) * 3)


@pytest.mark.parametrize(
    "config",
    [
        {"do_resize": False},
        {"resample": 3},
        {"size": {"height": 640, "width": 640}},
        {"size": {"max_height": 480, "max_width": 640}},
        {"size": {"shortest_edge": 800, "longest_edge": "1333"}},
        {"size": "800"},
        {"size": [800, 1333]},
        {"image_mean": [0.5]},
        {"image_mean": 0.5},
        {"image_std": [0.0, 0.1, 0.1]},
        {"image_std": [0.2, 0.2, 0.2], "do_rescale": False},
        {"image_mean": [-0.5, 0.5, 0.5]},
        {"image_std": ["a", "b", "c"]},
        {"rescale_factor": 0},
        {"rescale_factor": "1/255"},
    ],
)
def test_another_preprocessing_is_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json says {next(iter(config))} ="):
        from_preprocessor_config(config)


def test_the_file_beside_the_weights_is_read(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 480, "max_size": 640}))

    settings = read_settings(
        tmp_path / "model.safetensors", {"x": torch.ones(1)}, layout=Layout.HUGGING_FACE
    )

    assert settings.preprocess == Preprocess(short_side=480, long_side=640)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_file_beside_the_weights_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)

    with pytest.raises(ValueError, match=r"beside the weights, .*preprocessor_config\.json: "):
        read_settings(tmp_path / "model.bin", {}, layout=Layout.HUGGING_FACE)


VERSION_2 = "dict(type='MultiScaleFlipAug', img_scale=(640, 480), flip=False, transforms=[{}])"
RESIZE_2 = VERSION_2.format("dict(type='Resize', keep_ratio=True)")
RESIZE_3 = "dict(type='Resize', scale=(640, 480), keep_ratio=True)"


@pytest.mark.parametrize(
    "text",
    [
        f"test_pipeline = [dict(type='LoadImageFromFile'), {RESIZE_2}]",
        f"test_pipeline = [{RESIZE_3}]",
        f"data = dict(train=dict(pipeline=[]), test=dict(pipeline=[{RESIZE_2}]))",
        f"test_dataloader = dict(dataset=dict(pipeline=[{RESIZE_3}]))",
        f"test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n"
        f"test_pipeline = [{RESIZE_3}]",
    ],
)
def test_the_scale_of_mmdetections_tests_is_read(text: str) -> None:
    settings = from_mmdet({"cfg": f"model = dict(num_queries=300)\n{text}"})

    assert settings.preprocess == Preprocess(short_side=480, long_side=640)


def test_a_configuration_without_a_test_pipeline_says_nothing_of_images() -> None:
    assert from_mmdet({"cfg": "model = dict(num_queries=300)"}).preprocess is None


@pytest.mark.parametrize(
    ("step", "name"),
    [
        ("dict(type='Resize', scale=(640, 640), keep_ratio=False)", "keep_ratio = False"),
        ("dict(type='Resize', scale=(640, 640))", "keep_ratio = False"),
        ("dict(type='Resize', scale_factor=2.0, keep_ratio=True)", "img_scale = None"),
        ("dict(type='FixShapeResize', width=640, height=640)", "type = 'FixShapeResize'"),
        (RESIZE_2.replace("(640, 480)", "[(640, 480), (800, 600)]"), "img_scale ="),
        (RESIZE_2.replace("keep_ratio=True", "keep_ratio=False"), "keep_ratio = False"),
    ],
)
def test_another_way_to_size_the_images_of_tests_is_refused(step: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"meta\.cfg, test pipeline, says {name}"):
        from_mmdet({"cfg": f"model = dict(num_queries=300)\ntest_pipeline = [{step}]"})
