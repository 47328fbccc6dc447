"""The parts that networks are made of, written as exporters write them: convolution blocks and transformer blocks."""

from __future__ import annotations

import math

import numpy as np

from targets.predictor.builder import Builder, Shape


def spatial(size: int, kernel: int, stride: int, pad: int) -> int:
    """The size that a window leaves."""
    return (size + 2 * pad - kernel) // stride + 1


def conv(
    b: Builder, x: str, outputs: int, kernel: int = 3, stride: int = 1, *, act: str = "Relu", depthwise: bool = False,
    pad: int | None = None,
) -> str:  # fmt: skip
    """A convolution with bias and an activation ("" for none); x: [n, c, h, w]."""
    batch, inputs, *size = b.shapes[x]
    pad = kernel // 2 if pad is None else pad
    shape = (batch, outputs, *(spatial(side, kernel, stride, pad) for side in size))
    depth = 1 if depthwise else inputs
    weight = b.weight(outputs, depth, kernel, kernel)
    b.macs += math.prod(shape) * depth * kernel * kernel
    y = b.add(
        "Conv", [x, weight, b.bias(outputs)], shape, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
        group=outputs if depthwise else 1,
    )  # fmt: skip
    return b.held(activation(b, y, act), positive=act in {"Relu", "Clip"})


def activation(b: Builder, x: str, act: str) -> str:
    """An activation by its ONNX name; Clip to [0, 6]; "Silu" is x times its sigmoid."""
    if not act:
        return x
    if act == "Silu":
        return b.add("Mul", [x, b.add("Sigmoid", [x], b.shapes[x])], b.shapes[x])
    limits = [b.scalar(0.0), b.scalar(6.0)] if act == "Clip" else []
    return b.add(act, [x, *limits], b.shapes[x])


def basic(b: Builder, x: str, outputs: int, stride: int, act: str = "Relu") -> str:
    """Two 3x3 convolutions and the sum with what came in, as in ResNet-18."""
    same = stride == 1 and b.shapes[x][1] == outputs
    y = conv(b, conv(b, x, outputs, 3, stride, act=act), outputs, act="")
    short = x if same else conv(b, x, outputs, 1, stride, act="")
    return b.held(activation(b, b.add("Add", [y, short], b.shapes[y]), act), positive=act == "Relu")


def bottleneck(b: Builder, x: str, middle: int, outputs: int, stride: int) -> str:
    """1x1, 3x3 and 1x1 and the sum, as in ResNet-50."""
    same = stride == 1 and b.shapes[x][1] == outputs
    y = conv(b, conv(b, conv(b, x, middle, 1), middle, 3, stride), outputs, 1, act="")
    short = x if same else conv(b, x, outputs, 1, stride, act="")
    return b.held(activation(b, b.add("Add", [y, short], b.shapes[y]), "Relu"), positive=True)


def inverted(b: Builder, x: str, middle: int, outputs: int, kernel: int, stride: int, act: str, gate: bool) -> str:
    """1x1 wider, depthwise, 1x1 narrower, with a sum where shapes allow, as in MobileNet; gate: squeeze and excite."""
    same = stride == 1 and b.shapes[x][1] == outputs
    y = conv(b, conv(b, x, middle, 1, act=act), middle, kernel, stride, act=act, depthwise=True)
    y = conv(b, squeeze(b, y) if gate else y, outputs, 1, act="")
    return b.held(b.add("Add", [x, y], b.shapes[y])) if same else y


def squeeze(b: Builder, x: str) -> str:
    """Channels scaled by a gate that sees their means."""
    channels = b.shapes[x][1]
    gate = conv(b, mean(b, x), max(8, channels // 4), 1)
    return b.held(b.add("Mul", [x, conv(b, gate, channels, 1, act="HardSigmoid")], b.shapes[x]))


def mean(b: Builder, x: str) -> str:
    """The mean over height and width, kept as 1 x 1."""
    batch, channels = b.shapes[x][:2]
    return b.held(b.add("ReduceMean", [x, b.constant(np.array([2, 3]))], (batch, channels, 1, 1), keepdims=1))


def pool(b: Builder, x: str, operator: str, kernel: int, stride: int, pad: int) -> str:
    """MaxPool or AveragePool."""
    batch, channels, *size = b.shapes[x]
    shape = (batch, channels, *(spatial(side, kernel, stride, pad) for side in size))
    return b.held(b.add(operator, [x], shape, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4))


def head(b: Builder, x: str, classes: int) -> str:
    """Global mean and a linear layer; x: [n, c, h, w]."""
    flat = reshape(b, mean(b, x), (b.shapes[x][0], b.shapes[x][1]))
    return gemm(b, flat, classes)


def gemm(b: Builder, x: str, outputs: int) -> str:
    """A linear layer on [n, c] as exporters write it."""
    inputs = b.shapes[x][1]
    b.macs += inputs * outputs
    terms = [x, b.weight(outputs, inputs), b.bias(outputs)]
    return b.held(b.add("Gemm", terms, (b.shapes[x][0], outputs), transB=1))


def linear(b: Builder, x: str, outputs: int) -> str:
    """A linear layer on the last axis."""
    shape = b.shapes[x]
    b.macs += math.prod(shape) * outputs
    y = b.add("MatMul", [x, b.weight(shape[-1], outputs, axis=1)], (*shape[:-1], outputs))
    return b.held(b.add("Add", [y, b.constant(np.zeros(outputs, np.float32))], b.shapes[y]))


def norm(b: Builder, x: str) -> str:
    """LayerNormalization over the last axis."""
    width = b.shapes[x][-1]
    terms = [x, b.constant(np.ones(width, np.float32)), b.constant(np.zeros(width, np.float32))]
    return b.held(b.add("LayerNormalization", terms, b.shapes[x], axis=-1))


def reshape(b: Builder, x: str, shape: Shape) -> str:
    """To a shape whose first size is the batch, which may be free."""
    return b.add("Reshape", [x, b.constant(np.array([-1 if b.free else shape[0], *shape[1:]]))], shape)


def attention(b: Builder, x: str, heads: int) -> str:
    """Self-attention, x: [n, t, d], from one product for queries, keys and values.

    As torch writes `scaled_dot_product_attention` for a free batch: the keys are turned through shapes that are only
    computed when it runs.
    """
    n, t, d = b.shapes[x]
    h = d // heads
    joint = reshape(b, linear(b, x, 3 * d), (n, t, 3, heads, h))
    joint = b.add("Transpose", [joint], (3, n, heads, t, h), perm=[2, 0, 3, 1, 4])
    parts = []
    for place in range(3):
        bounds = [b.constant(np.array([edge])) for edge in (place, place + 1, 0)]
        part = b.add("Slice", [joint, *bounds], (1, n, heads, t, h))
        parts.append(b.add("Squeeze", [part, b.constant(np.array([0]))], (n, heads, t, h)))
    query, keys, values = parts
    keys = _turned(b, keys) if b.free else b.add("Transpose", [keys], (n, heads, h, t), perm=[0, 1, 3, 2])
    root = b.constant(np.array([h**-0.25], np.float32))
    query, keys = (b.add("Mul", [value, root], b.shapes[value]) for value in (query, keys))
    b.macs += 2 * n * heads * t * t * h
    weights = b.add("Softmax", [b.add("MatMul", [query, keys], (n, heads, t, t))], (n, heads, t, t), axis=-1)
    y = b.held(b.add("MatMul", [b.held(weights, positive=True), values], (n, heads, t, h)))
    y = b.add("Transpose", [y], (n, t, heads, h), perm=[0, 2, 1, 3])
    return linear(b, reshape(b, y, (n, t, d)), d)


def _turned(b: Builder, keys: str) -> str:
    n, heads, t, h = b.shapes[keys]
    size = b.add("Shape", [keys], (4,))
    edges = [b.constant(np.array([edge])) for edge in (-1, -2, 2**62, 0)]
    last = b.add("Slice", [size, edges[0], edges[2]], (1,))
    second = b.add("Slice", [size, edges[1], edges[0]], (1,))
    first = b.add("Slice", [size, edges[3], edges[1]], (2,))
    flat = b.add("Reshape", [keys, b.add("Concat", [edges[0], second, last], (3,), axis=0)], (n * heads, t, h))
    flat = b.add("Transpose", [flat], (n * heads, h, t), perm=[0, 2, 1])
    return b.add("Reshape", [flat, b.add("Concat", [first, last, second], (4,), axis=0)], (n, heads, h, t))


def feed_forward(b: Builder, x: str, middle: int, act: str = "Gelu") -> str:
    """Two linear layers with an activation between."""
    return linear(b, b.held(activation(b, linear(b, x, middle), act)), b.shapes[x][-1])


def transformer(b: Builder, x: str, heads: int, middle: int, act: str, *, before: bool) -> str:
    """Attention and feed-forward with their sums; before: norms stand before the branches, else behind the sums."""
    shape = b.shapes[x]
    if before:
        x = b.held(b.add("Add", [x, attention(b, norm(b, x), heads)], shape))
        return b.held(b.add("Add", [x, feed_forward(b, norm(b, x), middle, act)], shape))
    x = norm(b, b.add("Add", [x, attention(b, x, heads)], shape))
    return norm(b, b.add("Add", [x, feed_forward(b, x, middle, act)], shape))


def patches(b: Builder, x: str, patch: int, width: int, *, token: bool) -> str:
    """An image in tokens of `width`, behind a token of their own where `token`."""
    y = conv(b, x, width, patch, patch, act="", pad=0)
    n, _, *size = b.shapes[y]
    count = math.prod(size)
    y = b.add("Transpose", [reshape(b, y, (n, width, count))], (n, count, width), perm=[0, 2, 1])
    if token:
        first = b.weight(1, 1, width)
        if b.free:
            batch = b.add("Shape", [x], (1,), start=0, end=1)
            sizes = b.add("Concat", [batch, b.constant(np.array([1])), b.constant(np.array([width]))], (3,), axis=0)
            first = b.add("Expand", [first, sizes], (n, 1, width))
        y = b.add("Concat", [first, y], (n, count + 1, width), axis=1)
    return b.add("Add", [y, b.weight(1, *b.shapes[y][1:])], b.shapes[y])


def embedding(b: Builder, tokens: str, width: int, words: int = 2000) -> str:
    """Rows of a table by token, with those of the places added; tokens: [n, t]."""
    n, t = b.shapes[tokens]
    y = b.add("Gather", [b.weight(words, width), tokens], (n, t, width), axis=0)
    return norm(b, b.add("Add", [y, b.weight(1, t, width)], b.shapes[y]))


def first_token(b: Builder, x: str) -> str:
    """The first token of each sample."""
    n, _, width = b.shapes[x]
    return b.add("Gather", [x, b.constant(np.array(0))], (n, width), axis=1)
