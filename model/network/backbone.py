"""ResNet with bottleneck blocks: images -> C3, C4, C5.

Source: He et al., arXiv:1512.03385, in the form of torchvision ("pytorch" style: the stride of
a stage sits on the 3x3 convolution), whose parameter names it keeps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4


class BatchNorm2d(nn.Module):
    """Batch norm that either trains, or is a fixed affine map in every mode.

    `trained=False` is the published recipe: running statistics never change, and weight and
    bias take no gradient.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, trained: bool) -> None:
        super().__init__()
        self.trained = trained
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=trained)
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=trained)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training and self.trained,
            momentum=0.1,
            eps=1e-5,
        )


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the output has 4 x `width` channels."""

    def __init__(
        self, in_channels: int, width: int, stride: int, *, is_first: bool, train_bn: bool
    ) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width, trained=train_bn)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(width, trained=train_bn)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels, trained=train_bn)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                BatchNorm2d(out_channels, trained=train_bn),
            )
            if is_first
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """Four stages of bottleneck blocks; width 64 and blocks (3, 4, 6, 3) are ResNet-50."""

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(
        self,
        width: int = 64,
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        *,
        frozen_stages: int = 1,
        train_bn: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm2d(width, trained=train_bn)
        channels = width
        for stage, num_blocks in enumerate(blocks):
            stage_width = width * 2**stage
            layers = []
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(
                    Bottleneck(
                        channels, stage_width, stride, is_first=block == 0, train_bn=train_bn
                    )
                )
                channels = stage_width * EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.out_channels = tuple(width * 2**stage * EXPANSION for stage in (1, 2, 3))
        self._initialise()
        self._freeze(frozen_stages)

    def _initialise(self) -> None:
        """He initialisation; where training starts from ImageNet weights they replace it."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _freeze(self, stages: int) -> None:
        if stages >= 0:
            self.conv1.requires_grad_(False)
            self.bn1.requires_grad_(False)
        for stage in range(1, stages + 1):
            self.get_submodule(f"layer{stage}").requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps images (B, 3, H, W) to C3, C4, C5 of strides 8, 16 and 32 (sizes rounded up)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer1(x)
        c3 = self.layer2(x)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return c3, c4, c5
