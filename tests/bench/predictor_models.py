"""Whole models of four families for the predictor's bench: random widths, depths and resolutions, random weights.

The sizes are drawn by a named seed: one set to look at while a method is worked on, another that only judges it.
"""

import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

FAMILIES = ("resnet", "mobilenet", "vit", "bert")


def drawn(family, seed, count):
    """`count` different settings of a family, as (name, settings)."""
    generator = random.Random(f"{family}-{seed}")
    found = {}
    while len(found) < count:
        settings = {key: generator.choice(values) for key, values in SPACES[family].items()}
        found.setdefault(f"{family}-" + "-".join(str(value) for value in settings.values()), settings)
    return list(found.items())


def export(family, settings, path):
    """Build one model and write its ONNX file with a free batch."""
    torch.manual_seed(0)
    model, example = BUILDERS[family](**settings)
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        model.eval(), (example,), path, dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False
    )


def zoo(folder, seed, count):
    """Export what is not there yet; {family: {name: path}}."""
    files = {}
    for family in FAMILIES:
        files[family] = {}
        for name, settings in drawn(family, seed, count):
            path = Path(folder) / f"{name}.onnx"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                export(family, settings, path.with_suffix(".part"))
                path.with_suffix(".part").rename(path)
            files[family][name] = path
    return files


def conv(inputs, outputs, kernel, stride=1, groups=1, act=nn.ReLU):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    nn.init.kaiming_normal_(layers[0].weight)
    return nn.Sequential(*layers, *([act()] if act else []))


class Residual(nn.Module):
    def __init__(self, body, shortcut):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


def resnet(resolution, width, depths, block):
    stem = [conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)] if resolution > 64 else [conv(3, width, 3)]
    layers, inputs = [*stem], width
    for stage, depth in enumerate(depths):
        middle = width * 2**stage
        outputs = middle * (4 if block == "bottleneck" else 1)
        for index in range(depth):
            stride = 2 if stage and not index else 1
            if block == "bottleneck":
                body = (conv(inputs, middle, 1), conv(middle, middle, 3, stride), conv(middle, outputs, 1, act=None))
            else:
                body = (conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3, act=None))
            same = stride == 1 and inputs == outputs
            layers.append(
                Residual(nn.Sequential(*body), nn.Identity() if same else conv(inputs, outputs, 1, stride, act=None))
            )
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 100)), images(resolution)


class Squeeze(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = (
            nn.Conv2d(channels, max(8, channels // 4), 1),
            nn.Conv2d(max(8, channels // 4), channels, 1),
        )

    def forward(self, x):
        return x * F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, ratio, kernel, stride, squeeze, act):
        super().__init__()
        middle = inputs * ratio
        self.body = nn.Sequential(
            conv(inputs, middle, 1, act=act),
            conv(middle, middle, kernel, stride, middle, act=act),
            *([Squeeze(middle)] if squeeze else []),
            conv(middle, outputs, 1, act=None),
        )
        self.same = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.same else self.body(x)


def mobilenet(resolution, width, depth, ratio, version):
    def rounded(share):
        return max(8, round(width * share / 8) * 8)

    act = nn.Hardswish if version == 3 else nn.ReLU6
    inputs = rounded(1)
    layers = [conv(3, inputs, 3, 2 if resolution > 64 else 1, act=act)]
    for stage, share in enumerate((0.75, 1, 2, 3, 5)):
        for index in range(depth if stage else 1):
            kernel = 5 if version == 3 and stage % 2 else 3
            stride = 2 if stage and not index else 1
            layers.append(Inverted(inputs, rounded(share), ratio, kernel, stride, version == 3 and stage > 1, act))
            inputs = rounded(share)
    layers += [conv(inputs, inputs * 6, 1, act=act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs * 6, 100)]
    return nn.Sequential(*layers), images(resolution)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Norms before the branches (ViT), or behind the sums (BERT)."""

    def __init__(self, width, heads, ratio, before):
        super().__init__()
        self.before, self.attention = before, Attention(width, heads)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mlp = nn.Sequential(nn.Linear(width, width * ratio), nn.GELU(), nn.Linear(width * ratio, width))

    def forward(self, x):
        if self.before:
            x = x + self.attention(self.norms[0](x))
            return x + self.mlp(self.norms[1](x))
        x = self.norms[0](x + self.attention(x))
        return self.norms[1](x + self.mlp(x))


class ViT(nn.Module):
    def __init__(self, resolution, patch, width, heads, depth, ratio):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (resolution // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, ratio, True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit(patches, patch, head, heads, depth, ratio):
    resolution = patches * patch
    return ViT(resolution, patch, head * heads, heads, depth, ratio), images(resolution)


class Bert(nn.Module):
    def __init__(self, tokens, width, heads, depth, ratio):
        super().__init__()
        self.words, self.places = nn.Embedding(5000, width), nn.Parameter(torch.randn(1, tokens, width))
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, ratio, False) for _ in range(depth)))
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.blocks(self.norm(self.words(x) + self.places))
        return self.head(torch.tanh(self.pool(x[:, 0])))


def bert(tokens, head, heads, depth, ratio):
    return Bert(tokens, head * heads, heads, depth, ratio), torch.randint(0, 5000, (2, tokens))


def images(resolution):
    return torch.randn(2, 3, resolution, resolution)


BUILDERS = {"resnet": resnet, "mobilenet": mobilenet, "vit": vit, "bert": bert}
SPACES = {
    "resnet": {
        "resolution": (32, 48, 64, 96, 128, 160, 224),
        "width": (12, 16, 20, 24, 32, 40, 48, 64),
        "depths": ((1, 1, 1), (2, 2, 2), (1, 1, 1, 1), (2, 2, 2, 2), (3, 4, 6, 3)),
        "block": ("basic", "bottleneck"),
    },
    "mobilenet": {
        "resolution": (32, 48, 64, 96, 128, 160, 192, 224),
        "width": (8, 16, 24, 32, 40),
        "depth": (1, 2, 3),
        "ratio": (3, 4, 6),
        "version": (2, 3),
    },
    "vit": {
        "patches": (6, 7, 8, 10, 12, 14),
        "patch": (4, 8, 16),
        "head": (24, 32, 48, 64),
        "heads": (2, 3, 4, 6),
        "depth": (2, 4, 6, 8, 12),
        "ratio": (2, 3, 4),
    },
    "bert": {
        "tokens": (16, 24, 32, 48, 64, 100, 128, 192, 256),
        "head": (24, 32, 48, 64),
        "heads": (2, 4, 6, 8),
        "depth": (2, 3, 4, 6, 8),
        "ratio": (2, 4),
    },
}
