"""What the calibration runs: chains of one kernel or block with weights of their own, and whole networks to check with.

A chain's copies have distinct weights, so that these come through the caches as in a network. Shapes are drawn at random
over what small and middle-sized networks hold: a grid would meet every staircase at the same place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from onnx import TensorProto

from targets.predictor import blocks
from targets.predictor.builder import Builder

MACS_MOST = 150e6
MACS_OF_WHOLE = 600e6
WEIGHTS_MOST = 6e6
T = TypeVar("T")
_ELEMENTWISE = ("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "Silu", "Erf", "Sqrt", "Elu")


@dataclass(frozen=True)
class Draw:
    """A source of sizes."""

    g: np.random.Generator

    def log(self, low: float, high: float) -> int:
        """A whole number, even on the logarithmic scale."""
        return round(math.exp(self.g.uniform(math.log(low), math.log(high))))

    def channels(self, low: int, high: int) -> int:
        """A width: mostly a multiple of 16 or 8, at times any, so that staircases show."""
        step = int(self.g.choice([16, 8, 4, 1], p=[0.55, 0.25, 0.1, 0.1]))
        return max(low, round(self.log(low, high) / step) * step, step)

    def of(self, *values: T) -> T:
        """One of these."""
        return values[int(self.g.integers(len(values)))]

    def chance(self, share: float) -> bool:
        """True in this share of draws."""
        return bool(self.g.random() < share)


def _image(b: Builder, side: int) -> str:
    return b.held(b.input((1, 3, side, side)))


def _sum(b: Builder, x: str, y: str) -> str:
    return b.held(b.add("Add", [x, y], b.shapes[x]))


Recipe = Callable[[Builder, Draw], list[str]]


def _copies(d: Draw, macs: float, weights: float) -> int:
    """How often a kernel of these costs is repeated: enough to outweigh the ends, within the limits.

    The limit of weights is drawn too, so that the same kernel is met with its weights in each of the caches.
    """
    return max(2, min(16, int(MACS_MOST / max(macs, 1)), int(d.log(WEIGHTS_MOST / 30, WEIGHTS_MOST) / max(weights, 1))))


def _area(d: Draw, channels: int, macs_a_point: float) -> int:
    """The side of a map that keeps one kernel within a third of the limits."""
    most = min(112.0, math.sqrt(MACS_MOST / 3 / macs_a_point), math.sqrt(3e6 / channels))
    return d.log(1 if most < 6 else 4, max(2.0, most)) if not d.chance(0.08) else d.log(1, 4)


def _full(b: Builder, d: Draw) -> list[str]:
    """Convolutions of one shape, over and over."""
    kernel = d.of(3, 3, 3, 3, 5, 1)
    c = d.channels(16, 512)
    side = _area(d, c, c * c * kernel**2)
    x = blocks.conv(b, _image(b, side), c, 3)
    for _ in range(_copies(d, c * c * kernel**2 * side**2, c * c * kernel**2)):
        x = blocks.conv(b, x, c, kernel)
    return [x]


def _branches(b: Builder, d: Draw) -> list[str]:
    """Convolutions from one width to another, with a stride, side by side on one input and summed."""
    kernel, stride = d.of(1, 1, 3, 3, 5), d.of(1, 1, 2)
    low, high = 16, 1024 if kernel == 1 else 384
    c, e = d.channels(low, high), d.channels(low, high)
    side = _area(d, c + e, c * e * kernel**2 / stride**2)
    x = blocks.conv(b, _image(b, side), c, 1)
    y = blocks.conv(b, x, e, kernel, stride, act="")
    for _ in range(_copies(d, c * e * kernel**2 * (side / stride) ** 2, c * e * kernel**2) - 1):
        y = _sum(b, y, blocks.conv(b, x, e, kernel, stride, act=""))
    return [y]


def _pointwise(b: Builder, d: Draw) -> list[str]:
    """1x1 to another width and back."""
    c, e = d.channels(12, 640), d.channels(16, 1024)
    side = _area(d, c + e, c * e)
    act = d.of("Relu", "Clip", "HardSwish")
    x = blocks.conv(b, _image(b, side), c, 1)
    for _ in range(max(1, _copies(d, c * e * side**2, c * e) // 2)):
        x = blocks.conv(b, blocks.conv(b, x, e, 1, act=act), c, 1, act="")
    return [x]


def _depthwise(b: Builder, d: Draw) -> list[str]:
    """Depthwise convolutions in a row, or strided ones side by side."""
    kernel, stride = d.of(3, 3, 5), d.of(1, 2)
    c, act = d.channels(16, 1024), d.of("Relu", "Clip", "HardSwish")
    side = min(_area(d, c, c), 112)
    x = blocks.conv(b, _image(b, side), c, 1)
    if stride == 1:
        for _ in range(12):
            x = blocks.conv(b, x, c, kernel, act=act, depthwise=True)
        return [x]
    y = blocks.conv(b, x, c, kernel, 2, act="", depthwise=True)
    for _ in range(9):
        y = _sum(b, y, blocks.conv(b, x, c, kernel, 2, act="", depthwise=True))
    return [y]


def _stem(b: Builder, d: Draw) -> list[str]:
    """First convolutions on an image, side by side."""
    side, c = d.log(20, 224), d.channels(8, 64)
    kernel, stride = d.of((3, 1), (3, 2), (5, 1), (7, 2), (7, 2), (3, 2), (4, 4), (8, 8), (16, 16))
    if kernel == stride:
        c, side = d.channels(32, 512), max(1, side // stride) * stride
    pad = 0 if kernel == stride else kernel // 2
    x = b.held(b.input((1, d.of(1, 3, 3, 3), side, side)))
    y = blocks.conv(b, x, c, kernel, stride, act="", pad=pad)
    for _ in range(4):
        y = _sum(b, y, blocks.conv(b, x, c, kernel, stride, act="", pad=pad))
    return [y]


def _narrow(b: Builder, d: Draw) -> list[str]:
    """Convolutions of widths that the blocked layout does not take, in a row; or 1x1 to a wider map and back."""
    c, side, wide = d.log(2, 30), d.log(4, 112), d.channels(16, 192)
    pointwise = d.chance(0.5)
    x = b.held(b.input((1, c, side, side)))
    for _ in range(6):
        x = blocks.conv(b, blocks.conv(b, x, wide, 1), c, 1, act="") if pointwise else blocks.conv(b, x, c, 3)
    return [x]


def _residual(b: Builder, d: Draw) -> list[str]:
    """A stage of a residual network."""
    c, e = d.channels(12, 256), d.channels(12, 256)
    deep, stride = d.chance(0.4), d.of(1, 2)
    out = e * 4 if deep else e
    side = _area(d, c + out, 6 * e * (c + out))
    x = blocks.conv(b, _image(b, side), c, 1)
    for place in range(3):
        step = 1 if place else stride
        x = blocks.bottleneck(b, x, e, out, step) if deep else blocks.basic(b, x, e, step)
    return [x]


def _mobile(b: Builder, d: Draw) -> list[str]:
    """A stage of a mobile network."""
    c, e, ratio = d.channels(8, 160), d.channels(8, 160), d.of(2, 3, 4, 6)
    kernel, stride = d.of(3, 5), d.of(1, 2)
    act, gate = d.of("Clip", "Relu", "HardSwish", "Silu"), d.chance(0.5)
    side = _area(d, e * ratio, 3 * e * ratio * (c + e))
    x = blocks.conv(b, _image(b, side), c, 1)
    for place in range(4):
        x = blocks.inverted(b, x, b.shapes[x][1] * ratio, e, kernel, 1 if place else stride, act, gate)
    return [x]


def _ends(b: Builder, d: Draw) -> list[str]:
    """Poolings side by side on a map, a global mean and linear layers."""
    c, side = d.channels(16, 512), d.log(4, 56)
    x = blocks.conv(b, _image(b, side), c, 1)
    operator, kernel = d.of("MaxPool", "MaxPool", "AveragePool"), d.of(2, 3)
    pads = {2: 0, 3: 1}[kernel]
    for _ in range(4):
        if b.shapes[x][2] >= kernel:
            stride = 2 if b.shapes[x][2] > 8 else 1
            x = blocks.pool(b, x, operator, kernel, stride, pads)
    return [blocks.head(b, x, d.log(8, 1000))]


def _means(b: Builder, d: Draw) -> list[str]:
    """Gates that see the means of maps."""
    c, side = d.channels(16, 768), d.log(3, 40)
    x = blocks.conv(b, _image(b, side), c, 1)
    for _ in range(3):
        x = blocks.squeeze(b, blocks.conv(b, x, c, 3, depthwise=True))
    return [x]


def _linear(b: Builder, d: Draw) -> list[str]:
    """Linear layers on rows of tokens, to another width and back."""
    t, c, e = d.log(1, 320), d.channels(16, 1024), d.channels(16, 2048)
    act = d.of("", "", "Gelu", "Relu", "Tanh")
    x = b.held(b.input((1, t, c)))
    for _ in range(max(1, _copies(d, t * c * e, c * e) // 2)):
        x = blocks.linear(b, blocks.activation(b, blocks.linear(b, x, e), act), c)
    return [x]


def _gemms(b: Builder, d: Draw) -> list[str]:
    """Linear layers on one row."""
    c, e = d.channels(16, 2048), d.channels(10, 1000)
    x = b.held(b.input((1, c)))
    for _ in range(max(1, _copies(d, c * e, c * e) // 2)):
        x = blocks.activation(b, blocks.gemm(b, x, e), d.of("Relu", "", "Tanh"))
        x = blocks.gemm(b, x, c)
    return [x]


def _elementwise(b: Builder, d: Draw) -> list[str]:
    """An operator on each element, or a norm, or softmax, again and again."""
    shape = (1, d.log(4, 320), d.channels(16, 1024))
    x = y = b.input(shape)
    kind = d.of("norm", "norm", "softmax", "sum", "product", "row", "scalar", "one", "one")
    operator = d.of(*_ELEMENTWISE)
    for _ in range(10):
        if kind == "norm":
            y = blocks.norm(b, y)
        elif kind == "softmax":
            y = b.add("Softmax", [y], shape, axis=-1)
        elif kind in {"sum", "product"}:
            # not twice the same: sums of what has no other user would be made one
            y = b.add("Add" if kind == "sum" else "Mul", [y, x], shape)
        elif kind == "row":
            y = b.add(d.of("Add", "Mul"), [y, b.weight(shape[-1])], shape)
        elif kind == "scalar":
            y = b.add(d.of("Add", "Mul", "Div", "Sub"), [y, b.scalar(1.5)], shape)
        else:
            y = blocks.activation(b, y, operator)
    return [y]


def _attentions(b: Builder, d: Draw) -> list[str]:
    """Attention, two or three times."""
    heads, width, t = d.log(1, 12), d.of(16, 24, 32, 48, 64, 80), d.log(8, 280)
    x = b.held(b.input((1, t, heads * width)))
    for _ in range(3):
        x = blocks.attention(b, x, heads)
    return [x]


def _transformers(b: Builder, d: Draw) -> list[str]:
    """Transformer blocks, norms before or behind; at times many, for a long graph's nodes cost more than a short one's."""
    heads, width, t = d.log(1, 10), d.of(16, 24, 32, 48, 64), d.log(8, 280)
    x, before = b.held(b.input((1, t, heads * width))), d.chance(0.5)
    middle, act = heads * width * d.of(1, 2, 3, 4), d.of("Gelu", "Gelu", "Relu")
    for _ in range(d.log(2, 10)):
        x = blocks.transformer(b, x, heads, middle, act, before=before)
        if b.macs > MACS_MOST:
            break
    return [x]


def _mixed(b: Builder, d: Draw) -> list[str]:
    """A network of stages of any blocks behind each other, each on half the map and more channels."""
    side, c, act = d.log(24, 160), d.channels(8, 48), d.of("Relu", "Clip", "HardSwish")
    x = blocks.conv(b, _image(b, side), c, d.of(3, 5, 7), d.of(1, 2), act=act)
    for stage in range(d.log(2, 5)):
        c = min(512, round(c * d.of(1.0, 1.5, 2.0) / 8) * 8 or 8)
        kind, kernel, ratio, gate = (
            d.of("basic", "deep", "mobile", "mobile"),
            d.of(3, 5),
            d.of(2, 3, 4, 6),
            d.chance(0.3),
        )
        for place in range(d.log(1, 4)):
            stride = 2 if stage and not place and b.shapes[x][2] > 3 else 1
            if kind == "basic":
                x = blocks.basic(b, x, c, stride)
            elif kind == "deep":
                x = blocks.bottleneck(b, x, c, c * d.of(2, 4), stride)
            else:
                x = blocks.inverted(b, x, b.shapes[x][1] * ratio, c, kernel, stride, act, gate)
            if b.macs > MACS_MOST:
                break
    return [blocks.head(b, x, d.log(8, 1000))]


def _tokens(b: Builder, d: Draw) -> list[str]:
    """Embeddings and patches, and the first token's linear layer."""
    width = d.channels(32, 512)
    if d.chance(0.5):
        x = blocks.embedding(b, b.input((1, d.log(8, 280)), TensorProto.INT64), width)
    else:
        patch, count = d.of(4, 8, 16), d.log(3, 14)
        x = blocks.patches(b, b.input((1, 3, patch * count, patch * count)), patch, width, token=d.chance(0.7))
    return [blocks.gemm(b, blocks.first_token(b, blocks.norm(b, x)), d.log(2, 1000))]


_SHARES: tuple[tuple[Recipe, float], ...] = (
    (_full, 3), (_branches, 6), (_pointwise, 4), (_depthwise, 3), (_stem, 2), (_narrow, 2.5), (_residual, 3),
    (_mobile, 3), (_mixed, 6), (_ends, 1.5), (_means, 1), (_linear, 5), (_gemms, 1.5), (_elementwise, 5), (_attentions, 3),
    (_transformers, 4), (_tokens, 1.5),
)  # fmt: skip

_WORTH_INTEGERS = {
    _full, _branches, _pointwise, _depthwise, _stem, _narrow, _residual, _mobile, _mixed, _ends, _linear, _gemms,
    _attentions, _transformers,
}  # fmt: skip
QUANTIZED_SHARE = 0.25


def sample(seed: tuple[int, ...]) -> onnx.ModelProto:
    """One graph to learn from, the same for the same seed."""
    generator = np.random.default_rng(seed)
    quantized = bool(generator.random() < QUANTIZED_SHARE)
    weights = np.array([share * (not quantized or recipe in _WORTH_INTEGERS) for recipe, share in _SHARES])
    while True:
        recipe = _SHARES[int(generator.choice(len(_SHARES), p=weights / weights.sum()))][0]
        b = Builder(generator, free=bool(generator.random() < 0.7), quantized=quantized)
        outputs = recipe(b, Draw(generator))
        if b.macs <= 2 * MACS_MOST:
            return b.model(outputs)


def reference() -> onnx.ModelProto:
    """The network that is timed along with all others, always the same: convolutions of all kinds, and a transformer.

    A machine's speed drifts, and its kernels with it; so a time is read as a multiple of this network's.
    """
    b = Builder(np.random.default_rng(0))
    x = blocks.conv(b, b.input((1, 3, 56, 56)), 32, 3, 2)
    x = blocks.inverted(b, blocks.basic(b, x, 48, 1), 144, 64, 3, 2, "Clip", gate=False)
    x = blocks.patches(b, blocks.basic(b, x, 96, 1), 2, 192, token=False)
    for _ in range(2):
        x = blocks.transformer(b, x, 4, 384, "Gelu", before=True)
    return b.model([blocks.gemm(b, blocks.first_token(b, x), 100)])


def _resnet(b: Builder, d: Draw) -> list[str]:
    side, width, deep = d.log(32, 224), d.channels(12, 64), d.chance(0.4)
    x = _image(b, side)
    x = blocks.conv(b, x, width, 7, 2) if side > 64 else blocks.conv(b, x, width, 3)
    x = blocks.pool(b, x, "MaxPool", 3, 2, 1) if side > 64 else x
    for stage in range(d.of(3, 4)):
        for place in range(d.of(1, 2, 3)):
            stride, middle = 2 if stage and not place else 1, width * 2**stage
            x = blocks.bottleneck(b, x, middle, 4 * middle, stride) if deep else blocks.basic(b, x, middle, stride)
    return [blocks.head(b, x, 100)]


def _mobilenet(b: Builder, d: Draw) -> list[str]:
    side, width, ratio = d.log(32, 224), d.channels(8, 40), d.of(2, 3, 4, 6)
    act, gate = d.of("Clip", "HardSwish"), d.chance(0.5)
    x = blocks.conv(b, _image(b, side), width, 3, 2 if side > 64 else 1, act=act)
    for stage in range(5):
        outputs, kernel = 8 * max(1, round(width * (0.75, 1, 2, 3, 5)[stage] / 8)), d.of(3, 5)
        for place in range(d.of(1, 2, 3)):
            stride = 2 if stage and not place else 1
            x = blocks.inverted(b, x, b.shapes[x][1] * ratio, outputs, kernel, stride, act, gate and stage > 1)
    return [blocks.head(b, blocks.conv(b, x, 6 * b.shapes[x][1], 1, act=act), 100)]


def _vit(b: Builder, d: Draw) -> list[str]:
    patch, count = d.of(4, 8, 16), d.log(5, 14)
    heads, width = d.log(1, 8), d.of(24, 32, 48, 64)
    x = b.input((1, 3, patch * count, patch * count))
    x = blocks.patches(b, x, patch, heads * width, token=True)
    ratio = d.of(2, 3, 4)
    for _ in range(d.log(2, 12)):
        x = blocks.transformer(b, x, heads, heads * width * ratio, "Gelu", before=True)
    return [blocks.gemm(b, blocks.first_token(b, blocks.norm(b, x)), 100)]


def _bert(b: Builder, d: Draw) -> list[str]:
    heads, width = d.log(1, 8), d.of(24, 32, 48, 64)
    x = blocks.embedding(b, b.input((1, d.log(12, 256)), TensorProto.INT64), heads * width)
    ratio = d.of(2, 3, 4)
    for _ in range(d.log(2, 8)):
        x = blocks.transformer(b, x, heads, heads * width * ratio, "Gelu", before=False)
    pooled = b.add("Tanh", [blocks.gemm(b, blocks.first_token(b, x), heads * width)], (1, heads * width))
    return [blocks.gemm(b, pooled, 10)]


_FAMILIES: dict[str, Recipe] = {"resnet": _resnet, "mobilenet": _mobilenet, "vit": _vit, "bert": _bert}
WHOLE = (*_FAMILIES, "resnet int8", "mobilenet int8")
"""The families that the calibration checks itself with."""


def whole(family: str, seed: tuple[int, ...]) -> onnx.ModelProto:
    """One whole network of a family of WHOLE, the same for the same seed: to check with, never to learn from."""
    generator = np.random.default_rng(seed)
    name, _, integers = family.partition(" ")
    while True:
        b = Builder(generator, quantized=bool(integers))
        outputs = _FAMILIES[name](b, Draw(generator))
        if b.macs <= MACS_OF_WHOLE:
            return b.model(outputs)
