"""The convolutional families as networks: one image in, logits out, every layer under a name that tells its place.

All weights are drawn from torch's global generator, which the caller seeds.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn

from passes.search.spaces import MobileBlock, MobileStudent, PlainLayer, PlainStudent, ResidualBlock, ResidualStudent


class Plain(nn.Module):
    """Convolutions one after the other, global average pooling, a linear classifier."""

    def __init__(self, student: PlainStudent, channels_in: int, classes: int) -> None:
        super().__init__()
        widths = [channels_in, *(layer.channels for layer in student.layers)]
        self.layers = nn.Sequential(*(_first(w, layer) for w, layer in zip(widths, student.layers, strict=False)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] -> [batch, classes]."""
        logits: torch.Tensor = self.head(self.pool(self.layers(image)).flatten(1))
        return logits


class Blocks(nn.Module):
    """A stem, blocks, global average pooling, a linear classifier."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], channels: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] -> [batch, classes]."""
        logits: torch.Tensor = self.head(self.pool(self.blocks(self.stem(image))).flatten(1))
        return logits


class Residual(nn.Module):
    """Two 3x3 convolutions and a residual add. Source: He et al. 2015, arXiv:1512.03385, figure 5 left."""

    def __init__(self, channels_in: int, block: ResidualBlock) -> None:
        super().__init__()
        self.first = _convolution(channels_in, block.channels, 3, block.stride)
        self.second = _convolution(block.channels, block.channels, 3, relu=False)
        same = block.stride == 1 and channels_in == block.channels
        self.shortcut = (
            nn.Identity() if same else _convolution(channels_in, block.channels, 1, block.stride, relu=False)
        )
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels_in, height, width] -> [batch, channels, height / stride, width / stride]."""
        y: torch.Tensor = self.relu(self.second(self.first(x)) + self.shortcut(x))
        return y


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection; added to the input where the shape stays.

    Source: Sandler et al. 2018, arXiv:1801.04381, section 3.3; ReLU in place of ReLU6.
    """

    def __init__(self, channels_in: int, block: MobileBlock) -> None:
        super().__init__()
        inner = channels_in * block.expansion
        self.expand = _convolution(channels_in, inner, 1)
        self.depthwise = _convolution(inner, inner, block.kernel, block.stride, groups=inner)
        self.project = _convolution(inner, block.channels, 1, relu=False)
        self.adds = block.stride == 1 and channels_in == block.channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels_in, height, width] -> [batch, channels, height / stride, width / stride]."""
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class Separable(nn.Module):
    """A depthwise and a pointwise convolution. Source: DS-CNN, Zhang et al. 2017, arXiv:1711.07128."""

    def __init__(self, channels_in: int, block: MobileBlock) -> None:
        super().__init__()
        self.depthwise = _convolution(channels_in, channels_in, block.kernel, block.stride, groups=channels_in)
        self.pointwise = _convolution(channels_in, block.channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels_in, height, width] -> [batch, channels, height / stride, width / stride]."""
        y: torch.Tensor = self.pointwise(self.depthwise(x))
        return y


def plain(student: PlainStudent, channels_in: int, classes: int) -> nn.Module:
    """The network of a plain student, untrained."""
    return _initialised(Plain(student, channels_in, classes))


def residual(student: ResidualStudent, channels_in: int, classes: int) -> nn.Module:
    """The network of a residual student, untrained."""
    widths = [student.stem.channels, *(block.channels for block in student.blocks)]
    blocks: list[nn.Module] = [Residual(w, block) for w, block in zip(widths, student.blocks, strict=False)]
    return _initialised(Blocks(_first(channels_in, student.stem), blocks, widths[-1], classes))


def mobile(student: MobileStudent, channels_in: int, classes: int) -> nn.Module:
    """The network of a mobile student, untrained."""
    widths = [student.stem.channels, *(block.channels for block in student.blocks)]
    blocks: list[nn.Module] = [
        Separable(w, block) if block.expansion == 1 else InvertedResidual(w, block)
        for w, block in zip(widths, student.blocks, strict=False)
    ]
    return _initialised(Blocks(_first(channels_in, student.stem), blocks, widths[-1], classes))


def _first(channels_in: int, layer: PlainLayer) -> nn.Sequential:
    return _convolution(channels_in, layer.channels, layer.kernel, layer.stride)


def _convolution(
    channels_in: int, channels: int, kernel: int, stride: int = 1, *, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """A convolution that keeps the map's size but for the stride, its batch norm and, mostly, a ReLU."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts["norm"] = nn.BatchNorm2d(channels)
    if relu:
        parts["relu"] = nn.ReLU()
    return nn.Sequential(parts)


def _initialised(model: nn.Module) -> nn.Module:
    """Convolutions by the variance that keeps gradients (He et al. 2015, arXiv:1502.01852), the rest by torch's rule.

    torch's own `kaiming_normal_` counts all output channels for a grouped convolution, each of which is read by one
    group alone: a depthwise layer would start far too small.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size) / module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    return model
