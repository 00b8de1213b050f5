"""What a published file says about its model besides the tensors: sizes and arithmetic.

Tensors do not show how they are used. Sizes are returned under the names of `ModelConfig`; a
setting that this model does not support is refused by name.
"""

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from bundle.preprocess import Preprocess
from bundle.terminal import one_line

# Backbones that compute like ResNet-50, with other numbers of blocks.
_RESNETS = re.compile(r"(tv_|gluon_)?resnet(50|101|152)(_v1b)?(\..*)?$")


@dataclass(frozen=True)
class Settings:
    """Sizes by field of `ModelConfig`, or "num_proposals", "with_box_refine" and "two_stage".

    where: their source, for messages. names: how the source spells each of them. class_names: by
    output; None if it has none. names_from: the source of class_names. preprocess: None if it says
    nothing about that.
    """

    where: str = "the file"
    values: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    names_from: str = "the file"
    preprocess: Preprocess | None = None

    def get(self, name: str) -> Any:
        """The value of a field; None if it is not stated."""
        return self.values.get(name)

    def require(self, actual: Mapping[str, Any]) -> None:
        """Raise ValueError if a size differs from the tensors'; names the first."""
        for name, value in self.values.items():
            if name in actual and value != actual[name]:
                raise ValueError(
                    f"{self.where} says {self.names[name]} = {value}, but by the tensors it is "
                    f"{actual[name]}: do they belong to the same model?"
                )


def collect(where: str, given: Mapping[str, Any], *, names: Mapping[str, str]) -> Settings:
    """The given settings that are in `names` (theirs: ours).

    Raises:
        ValueError: two names of one size have different values; this model has one for both.
    """
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for theirs, ours in names.items():
        if given.get(theirs) is None:
            continue
        _require_size(where, theirs, given[theirs], is_flag=ours in _FLAGS)
        if values.setdefault(ours, given[theirs]) != given[theirs]:
            raise ValueError(
                f"{where} says {spelled[ours]} = {values[ours]} and {theirs} = {given[theirs]}; "
                "only one number for both is supported"
            )
        spelled.setdefault(ours, theirs)
    return Settings(where, values, spelled)


def with_classes(settings: Settings, classes: Any, *, where: str) -> Settings:
    """The settings with the class names in `classes`, which may be empty or None.

    Raises:
        ValueError: it is not a list.
    """
    if not classes:
        return settings
    if not isinstance(classes, list | tuple):
        raise ValueError(f"{where}: the classes are {classes!r}, expected a list of names")
    return replace(
        settings, class_names=tuple(one_line(str(name)) for name in classes), names_from=where
    )


_FLAGS = ("with_box_refine", "two_stage")


def _require_size(where: str, name: str, value: Any, *, is_flag: bool) -> None:
    is_right = isinstance(value, bool) == is_flag and isinstance(value, int) and value >= 0
    if not is_right or (value == 0 and not is_flag and "layers" not in name):
        expected = "True or False" if is_flag else "a whole number of at least 1"
        raise ValueError(f"{where} says {name} = {value!r}, expected {expected}")


def refuse(where: str, name: str, *, value: Any, supported: Any) -> NoReturn:
    """Raise ValueError for a setting that this model does not support."""
    raise ValueError(
        f"{where} says {name} = {value!r}, which changes the arithmetic; only {supported!r} is "
        "supported"
    )


def require_supported(
    where: str, given: Mapping[str, Any], *, supported: Mapping[str, Any]
) -> None:
    """Raise ValueError if a given setting differs from the supported one."""
    for name, value in supported.items():
        if name in given and not is_same(given[name], value):
            refuse(where, name, value=given[name], supported=value)


def is_same(found: Any, value: Any) -> bool:
    """Whether a setting has the supported value."""
    if isinstance(value, float) and isinstance(found, int | float):
        return math.isclose(found, value)
    return bool(found == value)


def _require_resnet(where: str, name: str, value: Any) -> None:
    if isinstance(value, str) and not _RESNETS.match(value):
        refuse(where, name, value=value, supported="resnet50, resnet101 or resnet152")


_HUGGING_FACE_SIZES = {
    "encoder_attention_heads": "num_heads",
    "decoder_attention_heads": "num_heads",
    "encoder_n_points": "num_points",
    "decoder_n_points": "num_points",
    "num_feature_levels": "num_levels",
    "d_model": "hidden_dim",
    "encoder_layers": "num_encoder_layers",
    "decoder_layers": "num_decoder_layers",
    "encoder_ffn_dim": "ffn_dim",
    "decoder_ffn_dim": "ffn_dim",
    "with_box_refine": "with_box_refine",
    "two_stage": "two_stage",
    "num_queries": "num_queries",
    "two_stage_num_proposals": "num_proposals",
}
# A config.json omits defaults; the tensors do not show these.
_HUGGING_FACE_DEFAULTS = {
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "two_stage_num_proposals": 300,
}
_HUGGING_FACE_SUPPORTED = {
    "model_type": "deformable_detr",
    "activation_function": "relu",
    "dilation": False,
    "position_embedding_type": "sine",
    "num_channels": 3,
}
# Of backbone_config and backbone_kwargs: what timm's ResNet does unless it is told otherwise.
_TIMM_SUPPORTED = {
    "model_type": "timm_backbone",
    "output_stride": 32,
    "num_channels": 3,
    "in_chans": 3,
    "act_layer": "relu",
    "norm_layer": "batchnorm2d",
    "aa_layer": "",
    "avg_down": False,
    "stem_type": "",
}
_PLACEHOLDER = re.compile(r"LABEL_\d+$")  # transformers' names for unnamed outputs


def from_hugging_face(config: Mapping[str, Any]) -> Settings:
    """Settings in a config.json of transformers.

    Raises:
        ValueError: a setting that changes the arithmetic is not supported; names it.
    """
    where = "config.json"
    config = _without_nulls(config)
    require_supported(where, config, supported=_HUGGING_FACE_SUPPORTED)
    _require_resnet(where, "backbone", config.get("backbone"))
    for part in ("backbone_kwargs", "backbone_config"):
        inner = config.get(part) or {}
        if not isinstance(inner, Mapping):
            raise ValueError(f"{where} says {part} = {inner!r}, expected an object")
        _require_resnet(where, f"{part}.backbone", inner.get("backbone"))
        require_supported(f"{where}, {part},", _without_nulls(inner), supported=_TIMM_SUPPORTED)
    labels = config.get("id2label") or {}
    if not isinstance(labels, Mapping) or not all(str(key).isdigit() for key in labels):
        raise ValueError(f"{where}: id2label is {labels!r}, expected names by number of output")
    names = [labels[key] for key in sorted(labels, key=int)]
    is_named = any(not _PLACEHOLDER.match(str(name)) for name in names)
    given = {**_HUGGING_FACE_DEFAULTS, **config}
    settings = collect(where, given, names=_HUGGING_FACE_SIZES)
    return with_classes(settings, names if is_named else None, where=f"{where}, id2label")


def _without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a value: transformers writes null where the default applies."""
    return {name: value for name, value in config.items() if value is not None}


_AUTHORS_SIZES = {
    "nheads": "num_heads",
    "enc_n_points": "num_points",
    "dec_n_points": "num_points",
    "num_feature_levels": "num_levels",
    "hidden_dim": "hidden_dim",
    "enc_layers": "num_encoder_layers",
    "dec_layers": "num_decoder_layers",
    "dim_feedforward": "ffn_dim",
    "num_queries": "num_queries",
    "num_proposals": "num_proposals",  # the same option, in a two-stage model
    "with_box_refine": "with_box_refine",
    "two_stage": "two_stage",
}
_AUTHORS_SUPPORTED = {
    "dilation": False,
    "position_embedding_scale": 2 * math.pi,
    "masks": False,
    "pre_norm": False,
    "activation": "relu",
}
_SINE = ("sine", "v2")  # two names for one encoding


def from_authors(args: argparse.Namespace | Mapping[str, Any]) -> Settings:
    """Settings in the command line that the authors' code stores as `args`.

    Raises:
        ValueError: a setting that changes the arithmetic is not supported; names it.
    """
    given = vars(args) if isinstance(args, argparse.Namespace) else args
    require_supported("args", given, supported=_AUTHORS_SUPPORTED)
    if given.get("position_embedding", "sine") not in _SINE:
        refuse("args", "position_embedding", value=given["position_embedding"], supported="sine")
    _require_resnet("args", "backbone", given.get("backbone"))
    return collect(
        "args", {**given, "num_proposals": given.get("num_queries")}, names=_AUTHORS_SIZES
    )
