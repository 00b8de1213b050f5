"""Parts of a model that a run does not train."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch

from model.configs import tiny
from model.data.loading import open_data
from model.network.deformable_detr import DeformableDetr
from model.training.frozen import freeze_parts
from model.training.loop import train
from tests.model.runs import run_config


def test_frozen_parts_stay_as_they_are_in_a_run(images: Path, tmp_path: Path) -> None:
    parts = ("encoder", "decoder.layers.1", "backbone.layer3")
    model = replace(tiny().model, train_batch_norm=True, frozen_stages=0)
    config = run_config(freeze=parts, epochs=1, num_workers=0, model=model)
    data = open_data(config, images)
    start = tmp_path / "start"
    train(config, data, out_dir=start)

    train(config, data, out_dir=tmp_path, init=start / "last.safetensors")

    before, after = (
        safetensors.torch.load_file(folder / "last.safetensors") for folder in (start, tmp_path)
    )
    changed = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    stem = ("backbone.conv1.", "backbone.bn1.")
    frozen = {name for name in after if name.startswith((*(f"{part}." for part in parts), *stem))}
    assert not changed & frozen
    assert {"decoder.layers.0.norm1.weight", "class_heads.0.weight"} <= changed
    assert {"backbone.layer1.0.bn1.running_mean", "backbone.layer4.0.bn1.running_var"} <= changed


def test_a_name_is_a_whole_part() -> None:
    model = DeformableDetr(tiny().model)

    freeze_parts(model, ["class_heads.0.bias"])

    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n for n in frozen if not n.startswith("backbone.")} == {"class_heads.0.bias"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["decoder.layer"],
            r"'decoder\.layer' is not a part of the model; near are .*decoder\.layers",
        ),
        (["x"], r"near are backbone, input_proj, encoder"),
        (["enc"], r"'enc' is not a part"),
    ],
)
def test_a_name_that_is_no_part_is_answered_with_the_nearest(
    names: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        freeze_parts(DeformableDetr(tiny().model), names)


def test_a_model_of_which_nothing_trains_is_refused() -> None:
    model = DeformableDetr(tiny().model)

    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze_parts(model, [name for name, _ in model.named_parameters()])
