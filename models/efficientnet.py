"""EfficientNets with depthwise convolutions, and their variant with group convolutions.

A block (inverted residual) computes, with a = norm_act with an activation (SiLU) and n = norm_act without activation,

    u = a1(conv1(x))           1x1, to expansion x in_channels; absent where expansion is 1
    v = a2(conv2(u))           k x k, depthwise or in groups
    w = v * gate(mean(v))      squeeze-excite
    out = n(conv3(w)) [+ x]    1x1; the skip where the stride is 1 and the number of channels stays

Proxy Normalization applies wherever norm_act is given an activation: stem, expansion, depthwise or group convolution,
and top. The squeeze-excite part has no norm and the projection no activation, so neither has proxy parameters. Every
convolution but the two of squeeze-excite feeds a norm and comes from norm_act.conv2d.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019; the variant:
Masters et al., "Making EfficientNet More Efficient", 2021.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Optional, Tuple

import torch
from torch import nn

from models.drop import Drop
from models.image_classifier import ImageClassifier
from models.initialization import fan_in, fan_out, truncated_normal_
from normact.activations import activation_function

if TYPE_CHECKING:
    from normact import NormActFactory


class StageShape(NamedTuple):
    """Blocks of one stage; the first has the stride and the change of channels."""

    expansion: int
    kernel_size: int
    stride: int
    channels: int
    blocks: int


@dataclass(frozen=True)
class EfficientNetShape:
    """The sizes that tell one EfficientNet from another.

    Args:
        stem_channels: channels of the stem.
        stem_stride: 2 for large images, 1 for small ones.
        stages: one row for each stage.
        top_channels: channels of the 1x1 convolution before pooling.
        conv_group_size: channels in each group of a block's k x k convolution; None for depthwise convolutions.
    """

    stem_channels: int
    stem_stride: int
    stages: Tuple[StageShape, ...]
    top_channels: int
    conv_group_size: Optional[int]

    def conv_groups(self, channels: int) -> int:
        """Return the groups of a k x k convolution of so many channels."""
        return channels if self.conv_group_size is None else max(channels // self.conv_group_size, 1)


class SqueezeExcite(nn.Module):
    """Gate each channel by a function of all channels' means.

    out = x * sigmoid(expand(phi(reduce(mean over H, W of x))))     reduce, expand: 1x1 convolutions with bias

    phi is the network's activation: a network of another one has it here too.

    Shape: (N, channels, H, W) -> same
    """

    def __init__(self, channels: int, reduced_channels: int, activation: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced_channels, 1)
        self.activation = activation_function(activation)
        self.expand = nn.Conv2d(reduced_channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.expand(self.activation(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class InvertedResidual(nn.Module):
    """One block; see the formulas at the head of this file.

    Args:
        in_channels: channels of the input.
        shape: the stage's row, with the stride of this block.
        conv_groups: groups of the k x k convolution.
        drop_path_rate: probability of leaving out the branch; a block without a skip is never left out.
        norm_act: makes the norms and the convolutions.
        activation: after each norm but the last, and in the squeeze-excite part.

    Shape: (N, in_channels, H, W) -> (N, shape.channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        in_channels: int,
        shape: StageShape,
        conv_groups: int,
        drop_path_rate: float,
        norm_act: NormActFactory,
        *,
        activation: str,
    ) -> None:
        super().__init__()
        mid_channels = shape.expansion * in_channels
        self.has_expansion = shape.expansion != 1
        if self.has_expansion:
            self.conv1 = norm_act.conv2d(in_channels, mid_channels, 1, bias=False)
            self.norm1 = norm_act(mid_channels, activation)
        self.conv2 = norm_act.conv2d(
            mid_channels,
            mid_channels,
            shape.kernel_size,
            stride=shape.stride,
            padding=shape.kernel_size // 2,
            groups=conv_groups,
            bias=False,
        )
        self.norm2 = norm_act(mid_channels, activation)
        # A quarter of the block's input, whatever the expansion.
        self.squeeze_excite = SqueezeExcite(mid_channels, max(in_channels // 4, 1), activation)
        self.conv3 = norm_act.conv2d(mid_channels, shape.channels, 1, bias=False)
        self.norm3 = norm_act(shape.channels, None)
        self.has_skip = shape.stride == 1 and in_channels == shape.channels
        self.drop_path = Drop(drop_path_rate) if self.has_skip and drop_path_rate > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.norm1(self.conv1(x)) if self.has_expansion else x
        v = self.squeeze_excite(self.norm2(self.conv2(u)))
        out = self.norm3(self.conv3(v))
        return self.drop_path(out) + x if self.has_skip else out


class EfficientNet(ImageClassifier):
    """Stem, stages of inverted residuals, top, pooling, dropout, classifier.

    Args:
        shape: the sizes of the network.
        num_classes: size of the output, 0 for the pooled features.
        norm_act: makes every norm with its activation, and the convolutions in front of a norm.
        in_channels: channels of the image.
        activation: after each norm but those of projections, and in the squeeze-excite parts.
        drop_rate: share of the pooled features set to zero in training.
        drop_path_rate: block b of B (from 0) is left out with probability drop_path_rate * b / B.

    Shape: (N, in_channels, H, W) -> (N, num_classes)
    """

    default_activation = "silu"

    def __init__(
        self,
        shape: EfficientNetShape,
        *,
        num_classes: int,
        norm_act: NormActFactory,
        in_channels: int,
        activation: str = default_activation,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(shape.top_channels, activation, drop_rate)
        channels = shape.stem_channels
        stem = norm_act.conv2d(in_channels, channels, 3, stride=shape.stem_stride, padding=1, bias=False)
        self.stem = nn.Sequential(OrderedDict(conv=stem, norm=norm_act(channels, activation)))
        total_blocks = sum(stage.blocks for stage in shape.stages)
        blocks_before = 0
        self.stages = nn.Sequential()
        for stage in shape.stages:
            blocks = nn.Sequential()
            for index in range(stage.blocks):
                row = stage if index == 0 else stage._replace(stride=1)
                groups = shape.conv_groups(stage.expansion * channels)
                rate = drop_path_rate * (blocks_before + index) / total_blocks
                blocks.append(InvertedResidual(channels, row, groups, rate, norm_act, activation=activation))
                channels = stage.channels
            self.stages.append(blocks)
            blocks_before += stage.blocks
        top = norm_act.conv2d(channels, shape.top_channels, 1, bias=False)
        self.top = nn.Sequential(OrderedDict(conv=top, norm=norm_act(shape.top_channels, activation)))
        self.apply(self.initialize)
        self.reset_classifier(num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.stages(self.stem(x)))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Draw from a truncated normal, scale 2, fan_out (group convolutions: fan_in); classifier Glorot uniform."""
        if isinstance(module, nn.Conv2d):
            fan = fan_in(module.weight) if module.groups > 1 else fan_out(module.weight)
            truncated_normal_(module.weight, scale=2.0, fan=fan)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


_B0_STAGES = (
    StageShape(1, 3, 1, 16, 1),
    StageShape(6, 3, 2, 24, 2),
    StageShape(6, 5, 2, 40, 2),
    StageShape(6, 3, 2, 80, 3),
    StageShape(6, 5, 1, 112, 3),
    StageShape(6, 5, 2, 192, 4),
    StageShape(6, 3, 1, 320, 1),
)

# For images of 28 or 32 pixels: the first convolution keeps the size, and the last map is 7x7 or 8x8.
_SMALL = EfficientNetShape(
    stem_channels=16,
    stem_stride=1,
    stages=(StageShape(1, 3, 1, 16, 1), StageShape(6, 3, 2, 24, 2), StageShape(6, 5, 2, 48, 3)),
    top_channels=256,
    conv_group_size=None,
)

# name: (factor of the channels, factor of the blocks, native image size)
_SCALING = {
    "b0": (1.0, 1.0, 224),
    "b1": (1.0, 1.1, 240),
    "b2": (1.1, 1.2, 260),
    "b3": (1.2, 1.4, 300),
    "b4": (1.4, 1.8, 380),
    "b5": (1.6, 2.2, 456),
}


def _scale_channels(channels: int, factor: float) -> int:
    """Return the multiple of 8 nearest to channels * factor (a half goes up), but never less than nine tenths of it."""
    scaled = channels * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _scale(width_factor: float, depth_factor: float) -> EfficientNetShape:
    stages = tuple(
        stage._replace(
            channels=_scale_channels(stage.channels, width_factor), blocks=math.ceil(stage.blocks * depth_factor)
        )
        for stage in _B0_STAGES
    )
    return EfficientNetShape(
        _scale_channels(32, width_factor), 2, stages, _scale_channels(1280, width_factor), conv_group_size=None
    )


def with_group_convolutions(shape: EfficientNetShape) -> EfficientNetShape:
    """Return the same network with convolutions in groups of 16 channels, and expansion 4 where it was 6."""
    stages = tuple(stage._replace(expansion=min(stage.expansion, 4)) for stage in shape.stages)
    return EfficientNetShape(shape.stem_channels, shape.stem_stride, stages, shape.top_channels, conv_group_size=16)


_DEPTHWISE = {f"efficientnet_{name}": (_scale(width, depth), size) for name, (width, depth, size) in _SCALING.items()}
_DEPTHWISE["efficientnet_small"] = (_SMALL, 32)

# name: (shape, native image size)
EFFICIENTNET_SHAPES = {
    **_DEPTHWISE,
    **{f"{name}_g16": (with_group_convolutions(shape), size) for name, (shape, size) in _DEPTHWISE.items()},
}
