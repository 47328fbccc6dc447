"""Small models, each with one thing in its graph that quantization and export must get right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from kdc.core.artifact import Artifact
from kdc.core.spec import TensorSpec


def conv(channels_in: int, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    )


class Plain(nn.Module):
    """Convolutions, BatchNorm, in-place ReLU, max-pool, dropout, flatten, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 8), conv(8, 16)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(image), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2)
        return self.head(self.dropout(x.flatten(1)))


class Residual(nn.Module):
    """An addition of two convolutions' outputs, ReLU behind it, global average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.shortcut = conv(3, 8), conv(8, 8), conv(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(image))
        x = F.relu(self.body(x) + self.shortcut(x))
        x = F.relu(self.body(x) + x)  # the same weights again: a layer that is read twice stays float
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Separable(nn.Module):
    """Depthwise convolutions with ReLU6, an average pool with a kernel, a convolution as the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.pointwise = conv(3, 8, stride=2), conv(8, 8, groups=8), conv(8, 16, 1)
        self.head = nn.Conv2d(16, 10, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.stem(image))
        x = F.relu6(self.pointwise(F.relu6(self.depthwise(x))))
        return F.adaptive_avg_pool2d(self.head(F.avg_pool2d(x, 2)), 1).flatten(1)


class Concat(nn.Module):
    """A concatenation of two branches of different ranges, and an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.after = conv(3, 8), conv(3, 8, 1, stride=2), conv(16, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        right = F.interpolate(F.relu(self.right(image)), scale_factor=2.0, mode="nearest")
        x = torch.cat([F.relu(self.left(image)), right], 1)
        return self.head(F.relu(self.after(x)).mean((2, 3)))


class Excite(nn.Module):
    """Squeeze and excite (Hu et al. 2017, arXiv:1709.01507): a multiplication by a sigmoid; SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.after = conv(3, 16), conv(16, 16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.stem(image))
        x = self.after(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.adaptive_avg_pool2d(F.relu(x * gate), 1).flatten(1))


class Perceptron(nn.Module):
    """Linear layers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


class Attention(nn.Module):
    """One transformer encoder block over patches: linear layers on [batch, tokens, channels], LayerNorm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, 32) * 0.02)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm1(x)).reshape(-1, 16, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16, 32)
        x = x + self.out(mixed)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Signal(nn.Module):
    """One-dimensional convolutions, "same" padding, a layer without a BatchNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(48, 16, 5, padding="same")
        self.second = nn.Conv1d(16, 16, 3, stride=2)
        self.head = nn.Linear(16 * 7, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.second(F.relu(self.first(image.reshape(-1, 48, 16)))))
        return self.head(x.flatten(1))


ZOO: dict[str, Callable[[], nn.Module]] = {
    model.__name__.lower(): model
    for model in (Plain, Residual, Separable, Concat, Excite, Perceptron, Attention, Signal)
}


def images(count: int, seed: int = 1) -> torch.Tensor:
    """Smooth pictures, [count, 3, 16, 16]: noise alone would leave every channel's mean the same."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, 16, mode="bilinear") + 0.1 * torch.randn(count, 3, 16, 16, generator=generator)


def artifact(name: str) -> Artifact[nn.Module]:
    """An untrained model of the zoo whose BatchNorms have seen pictures, and whose classes are all in use."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = ZOO[name]()
        model.train()
        with torch.no_grad():
            for i in range(4):
                model(images(32, seed=100 + i))
            outputs = model.eval()(images(256, seed=200))
            head = model.layers[-1] if name == "perceptron" else model.head
            spread = outputs.std(0) / 2
            head.bias.copy_((head.bias - outputs.mean(0)) / spread)
            head.weight.div_(spread.reshape(-1, *(1 for _ in head.weight.shape[1:])))
    return Artifact(
        model.eval(),
        (TensorSpec(name="image", shape=("batch", 3, 16, 16), dtype="float32"),),
        (TensorSpec(name="logits", shape=("batch", 10), dtype="float32"),),
    )
