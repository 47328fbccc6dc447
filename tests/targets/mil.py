"""A reference interpreter for Core ML's programs: each operation by its definition, in float64, in numpy and torch.

It knows the operations that the models of these tests are converted to, and refuses any other. What an operation gives is
rounded to the type that the program says it has, and must have the shape that the program says.
Source: the operations' definitions, https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
"""

import zipfile

import numpy as np
import torch
from torch.nn import functional as F

from targets.coreml_package import Named, read_program
from targets.fixed_batch import in_batches
from targets.ports import read_ports


class Reference:
    """An engine, as a runtime has: it runs the program that stands in a built file."""

    def __init__(self, file, folder):
        self.inputs, self.outputs = read_ports(file.path)
        self.program = read_program(unpacked(file, folder))

    def run(self, inputs):
        return in_batches(
            self._run, self.inputs, self.outputs, inputs, self.program.inputs[0].shape[0], "the reference"
        )

    def _run(self, inputs):
        return run(self.program, {port.name: x for port, x in zip(self.program.inputs, inputs, strict=True)})


def unpacked(file, folder):
    """The package that a built file holds."""
    with zipfile.ZipFile(file.path) as archive:
        archive.extractall(folder)
    (package,) = folder.glob("*.mlpackage")
    return package


def run(program, inputs):
    """Args: inputs: an array for each of the program's inputs, by name. Returns: its outputs, in order."""
    values = {}
    for port in program.inputs:
        assert inputs[port.name].shape == port.shape
        values[port.name] = inputs[port.name].astype(port.dtype)
    for operation in program.operations:
        arguments = {name: given(value, values) for name, value in operation.arguments.items()}
        found = OPERATIONS[operation.kind](**arguments)
        found = found if isinstance(found, list) else [found]
        for port, given_back in zip(operation.outputs, found, strict=True):
            value = np.asarray(given_back)
            assert value.shape == port.shape, f"{operation.kind}: {value.shape} where the program has {port}"
            values[port.name] = value if port.dtype == "string" else value.astype(port.dtype)
    return [values[port.name] for port in program.outputs]


def given(value, values):
    if isinstance(value, Named):
        return values[value.name]
    return [given(one, values) for one in value] if isinstance(value, list) else value


def wide(x):
    return torch.from_numpy(np.asarray(x, np.float64))


def whole(x):
    return [int(one) for one in np.asarray(x).flatten()]


def padded(x, sizes, pad_type, fill=0.0):
    """x with `sizes` [before, after] for each spatial axis in turn, as `pad_type` says."""
    assert pad_type in ("custom", "valid")
    pairs = [sizes[at : at + 2] for at in range(0, len(sizes), 2)] if pad_type == "custom" else []
    return F.pad(x, [size for pair in reversed(pairs) for size in pair], value=fill) if pairs else x


def conv(x, weight, pad_type, bias=None, strides=(1, 1), pad=(0, 0, 0, 0), dilations=(1, 1), groups=1):
    x = padded(wide(x), whole(pad), str(pad_type))
    bias = None if bias is None else wide(bias)
    return F.conv2d(x, wide(weight), bias, whole(strides), 0, whole(dilations), int(groups)).numpy()


def max_pool(x, kernel_sizes, pad_type, strides=(1, 1), pad=(0, 0, 0, 0), ceil_mode=False):
    assert not ceil_mode
    x = padded(wide(x), whole(pad), str(pad_type), fill=float("-inf"))
    return F.max_pool2d(x, whole(kernel_sizes), whole(strides)).numpy()


def avg_pool(
    x, kernel_sizes, pad_type, strides=(1, 1), pad=(0, 0, 0, 0), ceil_mode=False, exclude_padding_from_average=False
):
    assert not ceil_mode
    assert not exclude_padding_from_average or not any(whole(pad))
    x = padded(wide(x), whole(pad), str(pad_type))
    return F.avg_pool2d(x, whole(kernel_sizes), whole(strides)).numpy()


def linear(x, weight, bias=None):
    return F.linear(wide(x), wide(weight), None if bias is None else wide(bias)).numpy()


def matmul(x, y, transpose_x=False, transpose_y=False):
    x, y = wide(x), wide(y)
    return ((x.mT if transpose_x else x) @ (y.mT if transpose_y else y)).numpy()


def layer_norm(x, axes, gamma=None, beta=None, epsilon=1e-5):
    x, axes = wide(x), whole(axes)
    assert [axis % x.dim() for axis in axes] == list(range(x.dim() - len(axes), x.dim()))
    scale, shift = (None if one is None else wide(one) for one in (gamma, beta))
    return F.layer_norm(x, x.shape[x.dim() - len(axes) :], scale, shift, float(epsilon)).numpy()


def clip(x, alpha, beta):
    return np.clip(x, alpha, beta)


def gelu(x, mode="EXACT"):
    assert str(mode) in ("EXACT", "TANH_APPROXIMATION")
    return F.gelu(wide(x), approximate="none" if str(mode) == "EXACT" else "tanh").numpy()


def split(x, axis, num_splits=None, split_sizes=None):
    if split_sizes is not None:
        return [part.numpy() for part in torch.split(torch.from_numpy(x), whole(split_sizes), int(axis))]
    return np.split(x, int(num_splits), int(axis))


def slice_by_index(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    rank = x.ndim
    masks = [[False] * rank if mask is None else list(mask) for mask in (begin_mask, end_mask, squeeze_mask)]
    steps = [1] * rank if stride is None else whole(stride)
    chosen = tuple(
        start if squeezed else slice(None if from_start else start, None if to_end else stop, step)
        for start, stop, step, from_start, to_end, squeezed in zip(whole(begin), whole(end), steps, *masks, strict=True)
    )
    return x[chosen]


def on_axis(x, values, axis):
    """values, a number or one for each index of an axis, shaped to meet x."""
    values = np.asarray(values, np.float64)
    if values.ndim == 0:
        return values
    return values.reshape([-1 if at == int(axis) % x.ndim else 1 for at in range(x.ndim)])


def quantize(input, scale, output_dtype, zero_point=0, axis=None):
    limits = np.iinfo(str(output_dtype))
    # divided in float32, as ONNX does: a tie there need not be one in float64
    steps = np.rint(np.float32(input) / on_axis(input, scale, axis).astype(np.float32)).astype(np.float64)
    return np.clip(steps + on_axis(input, zero_point, axis), limits.min, limits.max)


def dequantize(input, scale, zero_point=0, axis=None):
    return on_axis(input, scale, axis) * (input.astype(np.float64) - on_axis(input, zero_point, axis))


def affine_dequantize(quantized_data, scale, zero_point, axis):
    return dequantize(quantized_data, scale, zero_point, axis)


def reduced(function):
    def reduce(x, axes=None, keep_dims=False):
        axes = None if axes is None else tuple(whole(axes))
        return function(x.astype(np.float64), axis=axes, keepdims=bool(keep_dims))

    return reduce


def of_two(function):
    return lambda x, y: function(np.asarray(x, np.float64), np.asarray(y, np.float64))


def of_one(function):
    return lambda x: function(np.asarray(x, np.float64))


OPERATIONS = {
    "const": lambda val: val,
    "identity": lambda x: x,
    "cast": lambda x, dtype: x,  # the program says to what
    "conv": conv,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "linear": linear,
    "matmul": matmul,
    "layer_norm": layer_norm,
    "gelu": gelu,
    "relu": of_one(lambda x: np.maximum(x, 0)),
    "relu6": of_one(lambda x: np.clip(x, 0, 6)),
    "clip": clip,
    "erf": lambda x: torch.erf(wide(x)).numpy(),
    "sqrt": of_one(np.sqrt),
    "rsqrt": lambda x, epsilon=0: 1 / np.sqrt(x.astype(np.float64) + epsilon),
    "square": of_one(np.square),
    "softmax": lambda x, axis=-1: torch.softmax(wide(x), int(axis)).numpy(),
    "add": of_two(np.add),
    "sub": of_two(np.subtract),
    "mul": of_two(np.multiply),
    "real_div": of_two(np.divide),
    "pow": of_two(np.power),
    "maximum": of_two(np.maximum),
    "minimum": of_two(np.minimum),
    "reduce_mean": reduced(np.mean),
    "reduce_sum": reduced(np.sum),
    "reshape": lambda x, shape: x.reshape(whole(shape)),
    "transpose": lambda x, perm: x.transpose(whole(perm)),
    "squeeze": lambda x, axes=None: x.squeeze(None if axes is None else tuple(whole(axes))),
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(whole(axes))),
    "concat": lambda values, axis, interleave=False: np.concatenate(values, int(axis)),
    "split": split,
    "slice_by_index": slice_by_index,
    "quantize": quantize,
    "dequantize": dequantize,
    "constexpr_affine_dequantize": affine_dequantize,
}
