"""The ResNets: their sizes, and names of tensors as torchvision publishes them."""

from dataclasses import replace

import pytest
import torch

from model.config import ModelConfig
from model.configs import tiny
from model.network.backbone import ResNet
from model.network.deformable_detr import DeformableDetr

RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}


def resnet(name: str) -> ResNet:
    block, blocks = RESNETS[name]
    with torch.device("meta"):
        return ResNet(64, blocks, block=block)


# As torchvision counts them, without the 1000 outputs of the classifier.
@pytest.mark.parametrize(
    ("name", "total", "channels"),
    [
        ("resnet18", 11_689_512 - 513_000, (128, 256, 512)),
        ("resnet34", 21_797_672 - 513_000, (128, 256, 512)),
        ("resnet50", 25_557_032 - 2_049_000, (512, 1024, 2048)),
        ("resnet101", 44_549_160 - 2_049_000, (512, 1024, 2048)),
    ],
)
def test_a_resnet_has_the_published_size(
    name: str, total: int, channels: tuple[int, int, int]
) -> None:
    model = resnet(name)

    assert sum(parameter.numel() for parameter in model.parameters()) == total
    assert model.out_channels == channels


def norm(name: str) -> set[str]:
    return {f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")}


def test_tensors_of_resnet18_are_called_as_torchvision_calls_them() -> None:
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]
    shortcuts = [f"layer{stage}.0.downsample" for stage in (2, 3, 4)]
    expected = {"conv1.weight"} | norm("bn1")
    expected |= {f"{block}.conv{n}.weight" for block in blocks for n in (1, 2)}
    expected |= {name for block in blocks for n in (1, 2) for name in norm(f"{block}.bn{n}")}
    expected |= {f"{shortcut}.0.weight" for shortcut in shortcuts}
    expected |= {name for shortcut in shortcuts for name in norm(f"{shortcut}.1")}

    found = resnet("resnet18").state_dict()

    assert found.keys() == expected
    assert found["layer2.0.conv1.weight"].shape == (128, 64, 3, 3)
    assert found["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)


@pytest.mark.parametrize("name", RESNETS)
def test_a_detector_takes_any_of_them(name: str) -> None:
    block, blocks = RESNETS[name]
    config: ModelConfig = replace(
        tiny().model,
        backbone_block=block,  # type: ignore[arg-type]
        backbone_blocks=blocks,
        backbone_width=8,
    )
    images, padding_mask = torch.randn(1, 3, 65, 40), torch.zeros(1, 65, 40, dtype=torch.bool)

    outputs = DeformableDetr(config).eval()(images, padding_mask)

    assert outputs["pred_boxes"].shape == (1, 10, 4)
    assert outputs["pred_logits"].isfinite().all()
