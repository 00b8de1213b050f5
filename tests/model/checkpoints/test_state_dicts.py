"""The model is found anywhere in a file, and the moving average takes precedence."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoints.state_dicts import find_state

KEYS = {
    "mmdet2": ["bbox_head.transformer.level_embeds", "backbone.conv1.weight"],
    "mmdet3": ["bbox_head.cls_branches.0.bias", "encoder.layers.0.norms.0.bias", "level_embed"],
    "authors": ["transformer.encoder.layers.0.norm1.bias", "class_embed.0.bias"],
    "hugging_face": ["model.encoder.layers.0.fc1.bias", "class_embed.0.bias"],
}
layouts = pytest.mark.parametrize("layout", KEYS)


def _state(layout: str = "authors", value: float = 1.0, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{key}": torch.full((2,), value) for key in KEYS[layout]}


def _value(tensors: dict[str, Tensor]) -> float:
    """The one number of which all tensors are made."""
    (value,) = {x for tensor in tensors.values() for x in tensor.tolist()}
    return float(value)


PREFIXES = ["", "model.", "module.", "module.module.", "_orig_mod.", "model._orig_mod.",
            "module._orig_mod.", "detector.", "model.model.", "net.detr."]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@layouts
def test_prefixes_are_taken_off(layout: str, prefix: str) -> None:
    tensors, _ = find_state({"state_dict": _state(layout, prefix=prefix)})

    assert list(tensors) == KEYS[layout]


@layouts
def test_wrappers_inside_of_names_are_taken_off(layout: str) -> None:
    wrapped = {key.replace(".", "._orig_mod._fsdp_wrapped_module.", 1): x
               for key, x in _state(layout).items()}  # fmt: skip

    tensors, _ = find_state(wrapped)

    assert list(tensors) == KEYS[layout]


@pytest.mark.parametrize(
    "content",
    [
        _state(),
        OrderedDict(_state()),
        {"state_dict": _state()},
        {"model": _state(), "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}, "epoch": 4},
        {"model": {"state_dict": _state()}},
        {"net": _state()},
        {"checkpoint": {"model": _state(prefix="module.")}},
        {"params": _state()},
        {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.4.0",
         "state_dict": _state(prefix="model."), "optimizer_states": [{}]},
    ],
)  # fmt: skip
def test_a_model_is_found_at_any_place(content: dict[str, Any]) -> None:
    tensors, notes = find_state(content)

    assert list(tensors) == KEYS["authors"]
    assert notes == []


@pytest.mark.parametrize(
    "content",
    [
        {"model": _state(), "ema": _state(value=5.0)},
        {"model": _state(), "ema": {"module": _state(value=5.0), "updates": 4}},
        {"model": _state(), "model_ema": _state(value=5.0)},
        {"state_dict": _state(), "state_dict_ema": _state(value=5.0)},
        {"model": _state(), "ema_state_dict": _state(value=5.0)},
        {"student": _state(), "teacher": _state(value=5.0)},
        {"state_dict": _state(prefix="student.") | _state(value=5.0, prefix="teacher.")},
        {"state_dict": _state(prefix="model.") | _state(value=5.0, prefix="ema_model.")},
    ],
)
def test_the_moving_average_is_chosen_and_said_so(content: dict[str, Any]) -> None:
    tensors, notes = find_state(content)

    assert list(tensors) == KEYS["authors"]
    assert _value(tensors) == 5.0
    assert notes[0].startswith("used as the moving average: ")


def test_mmengine_keeps_the_moving_average_where_the_weights_are_looked_for() -> None:
    raw = _state("mmdet3", 5.0, prefix="module.") | {"steps": torch.tensor(9)}

    tensors, notes = find_state({"state_dict": _state("mmdet3"), "ema_state_dict": raw})

    assert _value(tensors) == 1.0
    assert notes == ["state_dict holds the moving average, as mmengine stores it"]


@pytest.mark.parametrize(("buffers_are_average", "value"), [(True, 5.0), (False, 1.0)])
def test_buffers_of_mmdetection_2_are_the_average_or_the_weights(
    buffers_are_average: bool, value: float
) -> None:
    state = _state("mmdet2")
    buffers = {f"ema_{key.replace('.', '_')}": torch.full((2,), 5.0) for key in state}

    tensors, notes = find_state(
        {"state_dict": state | buffers}, buffers_are_average=buffers_are_average
    )

    assert list(tensors) == KEYS["mmdet2"]
    assert _value(tensors) == value
    assert "moving average" in notes[0]


def test_several_models_of_which_none_is_an_average_are_refused() -> None:
    with pytest.raises(ValueError, match=r"holds 2 models .*best; last"):
        find_state({"best": _state(), "last": _state()})


def test_a_usual_name_goes_before_an_unusual_one() -> None:
    tensors, notes = find_state({"state_dict": _state(), "initial": _state(value=5.0)})

    assert _value(tensors) == 1.0
    assert notes == ["used as the model: state_dict; ignored: initial"]


def test_tensors_beside_the_model_are_left_aside_and_said_so() -> None:
    state = _state(prefix="detr.") | {"criterion.empty_weight": torch.ones(2)}

    tensors, notes = find_state(state)

    assert list(tensors) == KEYS["authors"]
    assert "ignored tensors without the prefix detr.: 1, such as criterion.empty_weight" in notes[0]


def test_without_a_known_layout_all_tensors_are_given_back() -> None:
    assert list(find_state({"state_dict": {"fc.weight": torch.ones(2)}})[0]) == ["fc.weight"]
