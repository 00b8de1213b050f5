"""ResNet: images -> C3, C4, C5.

With padding masks, every operation that reads neighbouring cells finds zeros on padding, just as
beyond the border of an unpadded image.

Source: He et al., arXiv:1512.03385, as implemented by torchvision ("pytorch" style: the 3x3
convolution has the stride of its stage), with the same parameter names.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.distributed import num_processes
from model.network.convolution import Conv2d
from model.network.padding import valid_cells, zero_padding
from model.network.recompute import run_layer
from model.network.valid_norm import valid_norm

BATCH_NORM_MOMENTUM, BATCH_NORM_EPS = 0.1, 1e-5


class BatchNorm2d(nn.Module):
    """Batch norm that either trains or is a fixed affine map in every mode.

    `trained=False` is the published recipe: running statistics never change, and weight and
    bias get no gradient. One whose weight is frozen is fixed, too. With a padding mask, statistics
    exclude padding. In training, they are those of the images of all processes.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, trained: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=trained)
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=trained)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, h, w), whose padding (B, h, w) bool is True on padding."""
        is_training = self.training and self.weight.requires_grad
        if padding is None and is_training and num_processes() > 1:
            padding = torch.zeros_like(x[:, 0], dtype=torch.bool)
        if padding is not None and is_training:
            return self._normalise_valid(x, padding)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=is_training,
            momentum=BATCH_NORM_MOMENTUM,
            eps=BATCH_NORM_EPS,
        )

    def _normalise_valid(self, x: Tensor, padding: Tensor) -> Tensor:
        """Normalise by mean and variance of the cells that are not padding, in float32."""
        valid = valid_cells(padding, x.float())
        result, mean, variance, count = valid_norm(
            x, valid, weight=self.weight, bias=self.bias, eps=BATCH_NORM_EPS
        )
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), BATCH_NORM_MOMENTUM)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), BATCH_NORM_MOMENTUM)
        return result.to(x.dtype)


class Shortcut(nn.Sequential):
    """Takes a block's input to the shape of its output."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, train_bn: bool) -> None:
        super().__init__(
            Conv2d(in_channels, out_channels, 1, stride, bias=False),
            BatchNorm2d(out_channels, trained=train_bn),
        )

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:  # type: ignore[override]
        """Maps (B, C, h, w) to (B, C', h', w'); padding (B, h', w') is as in `BatchNorm2d`."""
        convolution, norm = self
        mapped: Tensor = norm(convolution(x), padding)
        return mapped


def _shortcut(
    in_channels: int, out_channels: int, *, stride: int, train_bn: bool
) -> Shortcut | None:
    """None if a block's input has the shape of its output."""
    if stride == 1 and in_channels == out_channels:
        return None
    return Shortcut(in_channels, out_channels, stride=stride, train_bn=train_bn)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the output has 4 x `width` channels."""

    EXPANSION = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, train_bn: bool) -> None:
        super().__init__()
        out_channels = width * self.EXPANSION
        self.conv1 = Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width, trained=train_bn)
        self.conv2 = Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(width, trained=train_bn)
        self.conv3 = Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels, trained=train_bn)
        self.downsample = _shortcut(in_channels, out_channels, stride=stride, train_bn=train_bn)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        """Maps x (B, C, h, w) to (B, C', h', w').

        Args:
            before, after: (B, h, w) and (B, h', w') bool, True on padding, of x and of the result;
                None treats padding as part of the image.
        """
        shortcut = x if self.downsample is None else self.downsample(x, after)
        x = F.relu(self.bn1(self.conv1(x), before))
        x = zero_padding(x, before)
        x = F.relu(self.bn2(self.conv2(x), after))
        return F.relu(self.bn3(self.conv3(x), after) + shortcut)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, as in ResNet-18 and 34; the output has `width`."""

    EXPANSION = 1

    def __init__(self, in_channels: int, width: int, *, stride: int, train_bn: bool) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(width, trained=train_bn)
        self.conv2 = Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(width, trained=train_bn)
        self.downsample = _shortcut(in_channels, width, stride=stride, train_bn=train_bn)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        """Maps x (B, C, h, w) to (B, C', h', w').

        Args:
            before, after: (B, h, w) and (B, h', w') bool, True on padding, of x and of the result;
                None treats padding as part of the image.
        """
        x = zero_padding(x, before)
        shortcut = x if self.downsample is None else self.downsample(x, after)
        x = F.relu(self.bn1(self.conv1(x), after))
        x = zero_padding(x, after)
        return F.relu(self.bn2(self.conv2(x), after) + shortcut)


BLOCKS: dict[str, type[Bottleneck] | type[BasicBlock]] = {
    "bottleneck": Bottleneck,
    "basic": BasicBlock,
}


class ResNet(nn.Module):
    """Four stages of blocks; width 64 and (3, 4, 6, 3) bottlenecks are ResNet-50."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        width: int = 64,
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        *,
        block: str = "bottleneck",
        frozen_stages: int = 1,
        train_bn: bool = False,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        self.recomputes = recomputes and not train_bn  # a second run would count in its statistics
        self.conv1 = Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm2d(width, trained=train_bn)
        channels = width
        make, stage_channels = BLOCKS[block], []
        for stage, num_blocks in enumerate(blocks):
            layers = []
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(make(channels, width * 2**stage, stride=stride, train_bn=train_bn))
                channels = width * 2**stage * make.EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            stage_channels.append(channels)
        self.out_channels = tuple(stage_channels[1:])
        self._initialise()
        self._freeze(frozen_stages)

    def _initialise(self) -> None:
        """He initialisation, which ImageNet weights may replace."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _freeze(self, stages: int) -> None:
        if stages >= 0:
            self.conv1.requires_grad_(False)
            self.bn1.requires_grad_(False)
        for stage in range(1, stages + 1):
            self.get_submodule(f"layer{stage}").requires_grad_(False)

    def forward(
        self, images: Tensor, paddings: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4 and C5 of images (B, 3, H, W), of strides 8, 16 and 32 (sizes rounded up).

        Args:
            images: normalised, zero on padding.
            paddings: (B, h, w) bool of strides 2, 4, 8, 16 and 32, as `halved_masks` makes them;
                None treats padding as part of the image, like the published training.

        Returns:
            (B, C, h, w) each; their channels are `out_channels`.
        """
        stem, *stages = paddings or (None,) * 5
        x = F.relu(self.bn1(self.conv1(images), stem))
        x = F.max_pool2d(zero_padding(x, stem), 3, 2, 1)
        before, maps = stages[0], []
        for layer, after in zip(
            (self.layer1, self.layer2, self.layer3, self.layer4), stages, strict=True
        ):
            for block in layer:
                x = run_layer(block, x, before, after, recomputes=self.recomputes)
                before = after
            maps.append(x)
        _, c3, c4, c5 = maps
        return c3, c4, c5
