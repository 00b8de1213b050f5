"""Settings of an mmdetection model, from the text of its configuration, which is Python.

The text is parsed, never run.
"""

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from model.checkpoints.published_preprocess import from_test_pipeline
from model.checkpoints.published_settings import (
    Settings,
    collect,
    refuse,
    require_supported,
    with_classes,
)

_WHERE = "meta.cfg"
_DEFORMABLE = "MultiScaleDeformableAttention"
_CHECKPOINT_PRIORITY = 50  # of mmcv's checkpoint hook
_PRIORITIES = {"HIGHEST": 0, "VERY_HIGH": 10, "HIGH": 30, "ABOVE_NORMAL": 40, "NORMAL": 50,
               "BELOW_NORMAL": 60, "LOW": 70, "VERY_LOW": 90, "LOWEST": 100}  # fmt: skip
# Defaults in mmdetection's classes, for settings that a configuration omits.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "backbone": {"type": "ResNet", "style": "pytorch", "dilations": (1, 1, 1, 1),
                 "strides": (1, 2, 2, 2), "deep_stem": False, "avg_down": False},
    "neck": {"type": "ChannelMapper", "act_cfg": {"type": "ReLU"}, "kernel_size": 3},
    "positional_encoding": {"normalize": False, "offset": 0.0, "temperature": 10000,
                            "scale": 2 * math.pi},
    "data_preprocessor": {"bgr_to_rgb": False},
    "norm": {}, "ffn": {}, "ffn_cfgs": {},
}  # fmt: skip
_SUPPORTED: dict[str, dict[str, Any]] = {
    "backbone": _DEFAULTS["backbone"],
    "neck": {"type": "ChannelMapper", "act_cfg": None, "kernel_size": 1},
    "positional_encoding": {"normalize": True, "offset": -0.5, "temperature": 10000,
                            "scale": 2 * math.pi},
    "data_preprocessor": {"bgr_to_rgb": True},
    "norm": {"eps": 1e-5, "num_groups": 32},
    "ffn": {"add_identity": True, "add_residual": True},
    "ffn_cfgs": {"add_identity": True, "add_residual": True},
}  # fmt: skip
_COLOUR_TYPES = ("color", "color_ignore_orientation")
_COLOURS = {"to_rgb": True, "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
_ORDERS = (
    ("self_attn", "norm", "ffn", "norm"),
    ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
)
_SIZES = {
    "num_query": "num_queries",
    "num_queries": "num_queries",
    "two_stage_num_proposals": "num_proposals",
    "num_feature_levels": "num_levels",
    "with_box_refine": "with_box_refine",
    "as_two_stage": "two_stage",
    "encoder.num_layers": "num_encoder_layers",
    "decoder.num_layers": "num_decoder_layers",
    "feedforward_channels": "ffn_dim",
    "num_classes": "num_classes",
    "max_per_img": "num_detections",
    "self-attention num_heads": "num_heads",
    "deformable attention num_heads of the encoder": "num_heads",
    "deformable attention num_heads of the decoder": "num_heads",
    "deformable attention num_points of the encoder": "num_points",
    "deformable attention num_points of the decoder": "num_points",
}
Config = Mapping[str, Any]


def from_mmdet(meta: Mapping[str, Any]) -> Settings:
    """The settings in the metadata of an mmdetection file.

    Raises:
        ValueError: a setting that changes the arithmetic is not supported; names it.
    """
    config = read_config(meta)
    model = config.get("model", config)
    if not isinstance(model, Mapping):
        return _with_classes(Settings(_WHERE), meta)
    _require_parts(model)
    _require_transformer(model)
    _require_scores(model)
    _require_colours(config)
    settings = collect(_WHERE, _sizes(model), names=_SIZES)
    preprocess = from_test_pipeline(_WHERE, config)
    return _with_classes(replace(settings, preprocess=preprocess), meta)


def _with_classes(settings: Settings, meta: Mapping[str, Any]) -> Settings:
    """The settings with the class names: version 2 has them in `meta`, version 3 further in."""
    data_set = meta.get("dataset_meta") or meta
    if not isinstance(data_set, Mapping):
        raise ValueError(f"meta.dataset_meta is {data_set!r}, expected a dict with the classes")
    key = "classes" if "classes" in data_set else "CLASSES"
    place = "meta" if data_set is meta else "meta.dataset_meta"
    return with_classes(settings, data_set.get(key), where=f"{place}.{key}")


def read_config(meta: Mapping[str, Any]) -> Config:
    """The configuration in a file's metadata; empty if there is none, or it is not Python."""
    text = meta.get("cfg", meta.get("config"))
    if isinstance(text, Mapping):
        return {str(key): _plain(value) for key, value in text.items()}
    try:
        statements = ast.parse(str(text or "")).body
    except (SyntaxError, ValueError):
        return {}
    config: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            config[statement.targets[0].id] = _value(statement.value)
    return config


def _plain(value: Any) -> Any:
    """A value in the form of `_value`: lists become tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _value(node: ast.expr) -> Any:
    """A literal, or dict(...) of literals; None for anything that would have to be run."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value)
                for key, value in zip(node.keys, node.values, strict=True) if key}  # fmt: skip
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def average_is_in_weights(meta: Mapping[str, Any]) -> bool:
    """Whether mmcv's EMA hook had swapped in the moving average when the file was saved.

    It does so if it runs before the checkpoint hook, which takes a priority below NORMAL.
    """
    for hook in read_config(meta).get("custom_hooks") or ():
        if isinstance(hook, Mapping) and "EMAHook" in str(hook.get("type")):
            priority = hook.get("priority", "NORMAL")
            number = _PRIORITIES.get(str(priority).upper(), priority)
            return isinstance(number, int) and number < _CHECKPOINT_PRIORITY
    return False


def _parts(node: Any, path: str = "") -> Iterator[tuple[str, Config]]:
    """Every dict in a configuration, with the keys that lead to it."""
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from _parts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _parts(item, path)


def _require_parts(model: Config) -> None:
    for path, part in _parts(model):
        name = path.rsplit(".", 1)[-1].removesuffix("_cfg")
        if name in _SUPPORTED:
            given = {**_DEFAULTS[name], **part}
            require_supported(f"{_WHERE}, model.{path},", given, supported=_SUPPORTED[name])


def _require_transformer(model: Config) -> None:
    for path, part in _parts(model):
        order = part.get("operation_order")
        if order is not None and order not in _ORDERS:
            refuse(
                f"{_WHERE}, model.{path},", "operation_order", value=order, supported=_ORDERS[-1]
            )
        activation = part.get("act_cfg")
        if isinstance(activation, Mapping) and activation.get("type", "ReLU") != "ReLU":
            refuse(
                f"{_WHERE}, model.{path},", "act_cfg", value=activation["type"], supported="ReLU"
            )


def _require_scores(model: Config) -> None:
    """Raise ValueError unless every output has its own score, which a softmax does not give."""
    for path, part in _parts(model):
        is_default = part.get("type") != "CrossEntropyLoss"
        if path.endswith("loss_cls") and not part.get("use_sigmoid", is_default):
            refuse(f"{_WHERE}, model.{path},", "use_sigmoid", value=False, supported=True)


def _require_colours(config: Config) -> None:
    for path, part in _parts(config):
        if "to_rgb" in part or "bgr_to_rgb" in part:
            require_supported(f"{_WHERE}, {path},", part, supported=_COLOURS)
        if part.get("color_type", "color") not in _COLOUR_TYPES:
            refuse(f"{_WHERE}, {path},", "color_type", value=part["color_type"], supported="color")


def _sizes(model: Config) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for path, part in _parts(model):
        given = {key: part[key] for key in _SIZES if key in part} | given
        side = "encoder" if "encoder" in path else "decoder" if "decoder" in path else ""
        if side and "num_layers" in part:
            given.setdefault(f"{side}.num_layers", part["num_layers"])
        if _is_deformable(path, part):
            for key, default in (("num_heads", 8), ("num_points", 4)):
                name = f"deformable attention {key} of the {side}"
                given.setdefault(name, part.get(key, default))
        elif "num_heads" in part:
            given.setdefault("self-attention num_heads", part["num_heads"])
    if any("transformer" in part for _, part in _parts(model)):  # version 2
        given.setdefault("two_stage_num_proposals", 300)
    elif number := given.get("num_queries", given.get("num_query")):
        given["two_stage_num_proposals"] = number
    return given


def _is_deformable(path: str, part: Config) -> bool:
    if "type" in part:
        return bool(part["type"] == _DEFORMABLE)
    return path.endswith("cross_attn_cfg") or ("encoder" in path and path.endswith("self_attn_cfg"))
