"""The Fashion-MNIST teacher: a ResNet-18-shaped network of width 32 for 28x28 grey images (2.8 M parameters)."""

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual add (He et al. 2015, arXiv:1512.03385, figure 5 left)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The four stages of ResNet-18 behind a 3x3 stem, as is usual for small images."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks: list[nn.Module] = []
        channels_in = width
        for stage in range(4):
            channels = width * 2**stage
            for block in range(2):
                blocks.append(BasicBlock(channels_in, channels, stride=2 if stage and not block else 1))
                channels_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels_in, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.blocks(self.stem(image))).flatten(1))


def build() -> nn.Module:
    """The untrained teacher; images [batch, 1, 28, 28] in, logits [batch, 10] out."""
    return ResNet18()
