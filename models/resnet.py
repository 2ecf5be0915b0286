"""Pre-activation (v2) ResNets and ResNeXts: norm and activation come before each convolution.

A block computes, with a = norm_act,

    u = a1(x);   basic       out = conv2(a2(conv1(u))) + shortcut
                 bottleneck  out = conv3(a3(conv2(a2(conv1(u))))) + shortcut
    shortcut = x, or projection(u) where the number of channels or the stride changes

The stem has no norm: its output reaches the first block's norm. One norm and activation follow the last block.

Which convolutions are in front of a norm: those whose output enters a norm and nothing else, which are all of a block's
convolutions but the last. These come from norm_act.conv2d and are weight-standardized where the factory says so.
The stem, the projections and a block's last convolution write into the residual sum, where the *relative* size of the
branches is information that a standardized weight could no longer express; they are plain convolutions.

Source: He et al., "Identity Mappings in Deep Residual Networks", 2016; Xie et al., "Aggregated Residual Transformations
for Deep Neural Networks", 2017.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Tuple

import torch
from torch import nn

from models.image_classifier import ImageClassifier
from models.initialization import fan_in, truncated_normal_

if TYPE_CHECKING:
    from normact import NormActFactory


@dataclass(frozen=True)
class ResNetShape:
    """The sizes that tell one ResNet from another.

    Args:
        depths: blocks in each stage; each stage but the first halves the image and doubles the channels.
        width: channels of the stem.
        bottleneck: blocks of 1x1, 3x3, 1x1 convolutions that give 4 x width channels; otherwise basic blocks.
        large_images: a 7x7 stem of stride 2, then max-pooling; otherwise a 3x3 stem of stride 1.
        conv_groups: groups of the bottleneck's 3x3 convolution (the cardinality of a ResNeXt).
        group_width: channels of each of these groups in the first stage; with one group it is the bottleneck's width.
    """

    depths: Tuple[int, ...]
    width: int
    bottleneck: bool = False
    large_images: bool = False
    conv_groups: int = 1
    group_width: int = 0


def _projection(in_channels: int, out_channels: int, stride: int) -> Optional[nn.Conv2d]:
    """Return the shortcut's 1x1 convolution, or None where the identity fits."""
    if in_channels == out_channels and stride == 1:
        return None
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each after its norm and activation.

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, norm_act: NormActFactory, *, activation: str
    ) -> None:
        super().__init__()
        self.norm1 = norm_act(in_channels, activation)
        self.projection = _projection(in_channels, out_channels, stride)
        self.conv1 = norm_act.conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = norm_act(out_channels, activation)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.norm1(x)
        shortcut = x if self.projection is None else self.projection(u)
        return self.conv2(self.norm2(self.conv1(u))) + shortcut


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (which carries the stride and the groups) and 1x1 convolutions, each after its norm and activation.

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        norm_act: NormActFactory,
        *,
        activation: str,
        mid_channels: int,
        conv_groups: int,
    ) -> None:
        super().__init__()
        self.norm1 = norm_act(in_channels, activation)
        self.projection = _projection(in_channels, out_channels, stride)
        self.conv1 = norm_act.conv2d(in_channels, mid_channels, 1, bias=False)
        self.norm2 = norm_act(mid_channels, activation)
        self.conv2 = norm_act.conv2d(
            mid_channels, mid_channels, 3, stride=stride, padding=1, groups=conv_groups, bias=False
        )
        self.norm3 = norm_act(mid_channels, activation)
        self.conv3 = nn.Conv2d(mid_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.norm1(x)
        shortcut = x if self.projection is None else self.projection(u)
        return self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(u))))) + shortcut


class ResNet(ImageClassifier):
    """Stem, stages of blocks, one last norm and activation, pooling, classifier.

    Args:
        shape: the sizes of the network.
        num_classes: size of the output, 0 for the pooled features.
        norm_act: makes every norm with its activation, and the convolutions in front of a norm.
        in_channels: channels of the image.
        activation: after each norm.

    Shape: (N, in_channels, H, W) -> (N, num_classes)
    """

    default_activation = "relu"

    def __init__(
        self,
        shape: ResNetShape,
        *,
        num_classes: int,
        norm_act: NormActFactory,
        in_channels: int,
        activation: str = default_activation,
    ) -> None:
        expansion = 4 if shape.bottleneck else 1
        super().__init__(expansion * shape.width * 2 ** (len(shape.depths) - 1), activation, drop_rate=0.0)
        self.stem = _build_stem(shape, in_channels)
        channels = shape.width
        self.stages = nn.Sequential()
        for index in range(len(shape.depths)):
            self.stages.append(_build_stage(shape, index, channels, norm_act, activation))
            channels = expansion * shape.width * 2**index
        self.norm = norm_act(channels, activation)
        self.apply(self.initialize)
        self.reset_classifier(num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.stages(self.stem(x)))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Draw from a truncated normal, scale 1, fan_in: a unit-variance input gives a unit-variance output.

        That is the choice of the paper's authors, and the fitting one here, since the proxy-normalized activation in
        front of each convolution has variance 1. There is no norm at the end of a block whose gain could start at 0.
        """
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            truncated_normal_(module.weight, scale=1.0, fan=fan_in(module.weight))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _build_stem(shape: ResNetShape, in_channels: int) -> nn.Sequential:
    if not shape.large_images:
        return nn.Sequential(OrderedDict(conv=nn.Conv2d(in_channels, shape.width, 3, padding=1, bias=False)))
    conv = nn.Conv2d(in_channels, shape.width, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, pool=nn.MaxPool2d(3, stride=2, padding=1)))


def _build_stage(
    shape: ResNetShape, index: int, in_channels: int, norm_act: NormActFactory, activation: str
) -> nn.Sequential:
    out_channels = (4 if shape.bottleneck else 1) * shape.width * 2**index
    blocks = nn.Sequential()
    for block in range(shape.depths[index]):
        stride = 2 if index > 0 and block == 0 else 1
        if shape.bottleneck:
            mid_channels = shape.conv_groups * shape.group_width * 2**index
            blocks.append(
                BottleneckBlock(
                    in_channels,
                    out_channels,
                    stride,
                    norm_act,
                    activation=activation,
                    mid_channels=mid_channels,
                    conv_groups=shape.conv_groups,
                )
            )
        else:
            blocks.append(BasicBlock(in_channels, out_channels, stride, norm_act, activation=activation))
        in_channels = out_channels
    return blocks


SMALL_SHAPES = {
    **{f"resnet{6 * n + 2}": ResNetShape(depths=(n, n, n), width=16) for n in (1, 3, 5, 7, 9)},
    # Half the multiply-adds of resnet20 and more parameters, most of them in a stage of few pixels: fast on a CPU.
    "resnet10": ResNetShape(depths=(1, 1, 1, 1), width=16),
    "resnext20_8x4d": ResNetShape((2, 2, 2), width=16, bottleneck=True, conv_groups=8, group_width=4),
}

LARGE_SHAPES = {
    "resnet50": ResNetShape((3, 4, 6, 3), width=64, bottleneck=True, large_images=True, group_width=64),
    "resnet101": ResNetShape((3, 4, 23, 3), width=64, bottleneck=True, large_images=True, group_width=64),
    "resnext50_32x4d": ResNetShape(
        (3, 4, 6, 3), width=64, bottleneck=True, large_images=True, conv_groups=32, group_width=4
    ),
    "resnext101_32x4d": ResNetShape(
        (3, 4, 23, 3), width=64, bottleneck=True, large_images=True, conv_groups=32, group_width=4
    ),
}
