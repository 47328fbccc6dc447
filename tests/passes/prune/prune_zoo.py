"""Small models, one for each way in which channels can be tied, and the layers of each that can be pruned."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(channels_in, channels, kernel=3, **more):
    return nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, **more)


class Plain(nn.Sequential):
    prunable = {"0", "3", "6"}

    def __init__(self):
        super().__init__(
            conv(3, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 24), nn.PReLU(24), nn.MaxPool2d(2),
            conv(24, 16), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 5),
        )  # fmt: skip


class ResidualBlock(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(channels_in, channels, stride=stride, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, bias=False), nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(conv(channels_in, channels, 1, stride=stride), nn.BatchNorm2d(channels))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu_(y)


class ResNet(nn.Module):
    prunable = {"stem", "a.conv1", "a.conv2", "b.conv1", "b.conv2", "b.shortcut.0", "c.conv1", "c.conv2"}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.a, self.b, self.c = ResidualBlock(16, 16, 1), ResidualBlock(16, 24, 2), ResidualBlock(24, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(self.stem(x)))).mean((2, 3)))


class DenseNet(nn.Module):
    prunable = {"stem", "layers.0", "layers.1", "layers.2"}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 12)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12 + 8 * i) for i in range(3))
        self.layers = nn.ModuleList(conv(12 + 8 * i, 8) for i in range(3))
        self.head = nn.Linear(36, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.head(x.amax((2, 3)))


class InvertedResidual(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), and a depthwise layer that makes two of each."""

    prunable = {"stem", "expand", "depthwise", "project", "multiplier", "last"}

    def __init__(self):
        super().__init__()
        self.stem, self.expand = conv(3, 8), conv(8, 32, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(32), nn.BatchNorm2d(32), nn.BatchNorm2d(8)
        self.depthwise, self.project = conv(32, 32, groups=32, bias=False), conv(32, 8, 1, bias=False)
        self.multiplier, self.last = conv(8, 16, groups=8), conv(16, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu6(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        x = self.multiplier(x + self.bn3(self.project(y)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class ShuffleNet(nn.Module):
    """A unit of ShuffleNetV2 (Ma et al. 2018, arXiv:1807.11164): halves, branch, concat, shuffle; halves again."""

    prunable = {"stem", "one", "two", "three", "last"}

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv(3, 32), nn.BatchNorm2d(32)
        self.one, self.two, self.three = conv(16, 24, 1), conv(24, 24, groups=24), conv(24, 16, 1)
        self.last, self.head = conv(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        left, right = F.relu(self.bn(self.stem(x))).chunk(2, dim=1)
        x = torch.cat([left, F.relu(self.three(self.two(F.relu(self.one(right)))))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = x.split(c // 2, dim=1)
        return self.head(F.relu(self.last(left * 2 + right)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    prunable = {"stem", "reduce", "expand", "last"}

    def __init__(self):
        super().__init__()
        self.stem, self.reduce, self.expand = conv(3, 16), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.last, self.head = conv(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        gate = torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.head(self.last(x * gate).mean((2, 3)))


class ResNeXt(nn.Module):
    """Grouped convolutions of both kinds: 8 groups of 2 channels (whole groups go), 2 groups of 8 (positions go)."""

    prunable = {"stem", "many", "mid", "few", "last"}

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.many = conv(3, 16), nn.BatchNorm2d(16), conv(16, 16, groups=8)
        self.mid, self.few, self.last = conv(16, 16, 1), conv(16, 24, groups=2), conv(24, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.many(F.relu(self.bn(self.stem(x)))))
        return self.head(self.last(F.relu(self.few(self.mid(x)))).mean((2, 3)))


class UNet(nn.Module):
    prunable = {"down1", "down2", "middle", "up2", "up1", "grouped", "fuse"}

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.middle = conv(3, 8), conv(8, 12), conv(12, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, 2), conv(24, 8)
        self.grouped = nn.ConvTranspose2d(8, 8, 3, 1, 1, groups=2)
        self.fuse, self.head = conv(16, 8), conv(8, 2, 1)

    def forward(self, x):
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        y = F.relu(self.middle(F.avg_pool2d(two, 2)))
        y = F.relu(self.up1(torch.cat([two, self.up2(y)], 1)))
        y = F.interpolate(self.grouped(y), scale_factor=2, mode="bilinear")
        return self.head(F.relu(self.fuse(torch.cat([one, F.pad(y, (1, 1, 1, 1))[:, :, 1:-1, 1:-1]], 1))))


class VGG(nn.Module):
    prunable = {"features.0", "features.3", "hidden"}

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), nn.ReLU(), nn.MaxPool2d(2), conv(8, 12), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden, self.bn, self.head = nn.Linear(12 * 16, 32), nn.BatchNorm1d(32), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(F.relu(self.bn(self.hidden(torch.flatten(self.features(x), 1)))))


class ConvNeXt(nn.Module):
    """A block of ConvNeXt (Liu et al. 2022, arXiv:2201.03545): depthwise, channels last, a learned scale."""

    prunable = {"stem", "depthwise", "widen", "narrow"}

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise, self.norm = nn.Conv2d(3, 16, 4, 4), conv(16, 16, 7, groups=16), nn.LayerNorm(16)
        self.widen, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.full((16,), 0.5))
        self.out, self.head = nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.widen(y)))
        return self.head(self.out((x + y.permute(0, 3, 1, 2)).mean((-2, -1))))


class Attention(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.qkv, self.out, self.fixed = nn.Linear(16, 48), nn.Linear(16, 16), fixed

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = (p.view(n, t, 4, 4 if self.fixed else -1).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, -1))


class Transformer(nn.Module):
    """Pre-norm, with a learned position for each token; heads that follow the width."""

    prunable = {"embed", "attention.qkv", "attention.out", "widen", "narrow"}
    fixed = False

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 16, 16))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = Attention(self.fixed)
        self.widen, self.narrow, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.narrow(F.gelu(self.widen(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


class FixedHeads(Transformer):
    """Heads whose width is spelled out as a number: they must stay, all else may go."""

    prunable = {"embed", "attention.out", "widen", "narrow"}
    fixed = True


class EncoderLayer(nn.Module):
    """torch's own encoder layer, whose attention insists on its width: the hidden layer alone may go."""

    prunable = {"encoder.linear1"}

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        self.encoder = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x).flatten(2).permute(0, 2, 1)).mean(1))


class GroupNorm(nn.Module):
    prunable = {"one", "two", "three"}

    def __init__(self):
        super().__init__()
        self.one, self.many = conv(3, 16), nn.GroupNorm(8, 16)
        self.two, self.few = conv(16, 16), nn.GroupNorm(2, 16)
        self.three, self.instance, self.head = conv(16, 12), nn.InstanceNorm2d(12, affine=True), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.few(self.two(F.relu(self.many(self.one(x))))))
        return self.head(F.relu(self.instance(self.three(x))).mean((2, 3)))


class Shared(nn.Module):
    """One module called twice, and one weight that belongs to two modules: the tracer knows it by its last name."""

    prunable = {"stem", "twice", "other"}

    def __init__(self):
        super().__init__()
        self.stem, self.twice = conv(3, 12), conv(12, 12)
        self.tied, self.other = nn.Linear(12, 12, bias=False), nn.Linear(12, 12)
        self.other.weight = self.tied.weight
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.twice(F.relu(self.twice(F.relu(self.stem(x))))))
        return self.head(F.relu(self.other(F.relu(self.tied(x.mean((2, 3)))))))


class Functional(nn.Module):
    """Weights that are no module's: a filter, a matrix for @ and one for einsum, a scale and a buffer a channel."""

    prunable = {"filters", "matrix", "last"}

    def __init__(self):
        super().__init__()
        self.filters, self.bias = nn.Parameter(torch.randn(16, 3, 3, 3) / 5), nn.Parameter(torch.randn(16))
        self.matrix, self.last = nn.Parameter(torch.randn(16, 12) / 4), nn.Parameter(torch.randn(8, 12) / 4)
        self.scale, self.head = nn.Parameter(torch.randn(16, 1, 1)), nn.Linear(8, 5)
        self.register_buffer("mask", torch.rand(16, 1, 1), persistent=False)

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.filters, self.bias, padding=1) * self.scale * self.mask).mean((2, 3))
        return self.head(torch.einsum("ni,oi->no", F.relu(x @ self.matrix), self.last))


class PixelShuffle(nn.Module):
    prunable = {"one", "two", "gated"}

    def __init__(self):
        super().__init__()
        self.one, self.two, self.shuffle = conv(3, 8), conv(8, 24), nn.PixelShuffle(2)
        self.gated, self.head = conv(6, 16), conv(8, 2)

    def forward(self, x):
        return self.head(F.glu(self.gated(self.shuffle(self.two(F.relu(self.one(x))))), 1))


ZOO = {
    model.__name__: model
    for model in (
        Plain, ResNet, DenseNet, InvertedResidual, ShuffleNet, SqueezeExcite, ResNeXt, UNet, VGG, ConvNeXt, Transformer,
        FixedHeads, EncoderLayer, GroupNorm, Shared, Functional, PixelShuffle,
    )
}  # fmt: skip
