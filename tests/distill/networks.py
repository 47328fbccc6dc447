"""Small networks of unlike families for the tests of pairing and of objectives on features."""

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.distill.policy import Batch


def drawn(model: nn.Module, seed: int) -> nn.Module:
    """The model with weights of a seed's own, each tensor of several dimensions scaled to its inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(values * scale + (0 if parameter.dim() > 1 else 0.5))
    return model


def batch_of(context: Context, student: nn.Module, progress: float, first: int = 0, n: int = 12) -> Batch:
    """Samples of the training split as a step sees them."""
    data = context.data.train[first : first + n]
    with torch.no_grad():
        answers = context.teacher(*data.inputs)
    return Batch(
        index=torch.arange(len(data)),
        labels=data.labels,
        student=student(*data.inputs),
        teacher=answers,
        progress=progress,
    )


def touched(module: nn.Module) -> set[str]:
    """The parameters that a backward gave a gradient, which goes."""
    found = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    module.zero_grad()
    return found


def normal(model: nn.Module, seed: int) -> nn.Module:
    """The model with every parameter drawn from N(0, 0.3²), those of one dimension too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.skip = nn.Conv2d(channels_in, channels, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv2(self.norm(self.conv1(x)).relu()) + self.skip(x)).relu()


class Residual(nn.Module):
    """[batch, 1, 8, 8] -> [batch, 3], maps of 8, 4 and 2 a side."""

    def __init__(self, width: int, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        Block(width * 2 ** max(0, i - (j == 0)), width * 2**i, 2 if i and not j else 1)
                        for j in range(blocks)
                    )
                )
                for i in range(3)
            )
        )
        self.head = nn.Linear(4 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ v)


class Mixer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))  # fmt: skip  # noqa: E501

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """[batch, 1, 8, 8] -> [batch, 3]; a class token and 16 patches."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Mixer(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Encoder(nn.Module):
    """The same with torch's own layers."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))  # fmt: skip  # noqa: E501
