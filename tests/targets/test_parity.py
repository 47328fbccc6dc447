"""Every runtime's outputs against torch's, in every number format that its profile has: one law, all runtimes."""

import mil
import onnx_ir
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdc.core.artifact import Artifact
from kdc.core.budget import Budget
from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.core.errors import TargetError
from kdc.core.spec import TensorSpec
from passes.export.lower import lower
from passes.quantize import Quantize
from passes.simplify import Simplify
from targets.device import load_device
from targets.runtime import runtime_of

TARGETS = (
    "cpu-ort", "cpu-openvino", "cpu-ncnn", "cpu-mnn", "cpu-executorch", "cpu-litert", "mac-coreml", "iphone-coreml",
    "cpu-tvm", "rtx-trt", "jetson-orin",
)  # fmt: skip
SAMPLES = 24
# Of the outputs' root mean square: float32 sums in another order differ by some 1e-6, Winograd's transforms by some 1e-5.
FLOAT_TOLERANCE = 5e-5
# Of float16, whose values are rounded by up to 5e-4 of themselves after every operation.
HALF_TOLERANCE = 5e-3
# Of what quantization itself changes: rounding ties fall otherwise, float biases are not on the int32 grid.
INTEGER_SHARE = {"float32": 0.5, "float16": 1.0}  # float16 between two quantizers moves values across a tie too
APPROXIMATES = {("cpu-mnn", "transformer"): 5e-3}  # MNN computes GELU's erf by an approximation of its own
LACKS = {("cpu-ncnn", "transformer"): "pnnx cannot convert it"}  # ncnn has no five-dimensional reshape


def block(width_in, width, kernel=3, stride=1, groups=1):
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = block(3, 8), block(8, 16), nn.Linear(256, 10)

    def forward(self, image):
        x = F.max_pool2d(F.relu(self.first(image)), 2)
        return self.head(F.max_pool2d(F.relu(self.second(x)), 2).flatten(1))


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep, self.point = block(3, 8, stride=2), block(8, 8, groups=8), block(8, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        x = F.relu6(self.point(F.relu6(self.deep(F.relu6(self.stem(image))))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.shortcut, self.head = block(3, 8), block(8, 8), block(8, 8, 1), nn.Linear(8, 10)

    def forward(self, image):
        x = F.relu(self.stem(image))
        x = F.relu(self.body(x) + self.shortcut(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, image):
        return self.layers(image)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 10)
        self.norm1, self.norm2, self.qkv, self.out = (
            nn.LayerNorm(32),
            nn.LayerNorm(32),
            nn.Linear(32, 96),
            nn.Linear(32, 32),
        )
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(x)).reshape(-1, 16, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16, 32))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


MODELS = {kind.__name__.lower(): kind for kind in (Convolutions, Depthwise, Residual, Perceptron, Transformer)}


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, 16, mode="bilinear") + 0.1 * torch.randn(count, 3, 16, 16, generator=generator)


@pytest.fixture(scope="module")
def floats():
    """Each model, its BatchNorms having seen pictures."""
    made = {}
    for name, kind in MODELS.items():
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(3)
            model = kind().train()
            for seed in range(4):
                model(images(32, seed))
        made[name] = Artifact(
            model.eval(),
            (TensorSpec(name="image", shape=("batch", 3, 16, 16)),),
            (TensorSpec(name="logits", shape=("batch", 10)),),
        )
    return made


def quantized(artifact, device):
    """By kdc's own pass, in the scheme of the device."""

    def split(count, seed):
        x = images(count, seed)
        with torch.no_grad():
            return Split((x,), artifact.model(x).argmax(1))

    data = Splits(split(64, 11), split(64, 12), split(64, 13), split(1, 14), fingerprint="0")
    context = Context(
        step="quantize", device=device, task=None, data=data, teacher=artifact.model, budget=Budget(), seed=0,
        work=None, cache=None, emit=lambda event: None, teacher_cost=None, forecasts=None,
    )  # fmt: skip
    return Quantize().apply(artifact, Quantize().decide(artifact, context))


def lowered(artifact, device, path):
    model = artifact.with_model(lower(artifact, device.opset))
    simplify = Simplify()
    onnx_ir.save(simplify.apply(model, simplify.decide(model, None)).model, path)
    return path


def available(target):
    """The target's profile and runtime; skipped where it is not installed."""
    device = load_device(target)
    try:
        return device, runtime_of(device)
    except TargetError as error:
        pytest.skip(str(error).splitlines()[0])


def engine_of(runtime, file, device, folder):
    """What runs a file: its runtime, or a reference that reads the same file; skipped where there is neither."""
    reason = runtime.cannot_run(device)
    if reason is None:
        return runtime.load(file, device)
    if device.runtime != "coreml":
        pytest.skip(f"built, and not run: {reason}")
    return mil.Reference(file, folder)


def root_mean_square(x):
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("form", ["float32", "int8"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_built_file_answers_as_torch_does(target, name, form, floats, tmp_path):
    device, runtime = available(target)
    artifact = exact = floats[name]
    if form == "int8":
        if device.quantization is None:
            pytest.skip(f"target {target} has no integer format: `quantize` is refused")
        artifact = quantized(exact, device)
    path = lowered(artifact, device, tmp_path / "model.onnx")
    if device.runtime == "tensorrt" and runtime.cannot_run(device):
        pytest.skip(f"tensorrt builds where it runs: {runtime.cannot_run(device)}")
    if (target, name) in LACKS:
        with pytest.raises(TargetError, match=LACKS[target, name]):
            runtime.build(path, tmp_path / "built", device)
        return
    file = runtime.build(path, tmp_path / "built", device)
    assert all(part.is_file() for part in runtime.files(file))
    engine = engine_of(runtime, file, device, tmp_path / "unpacked")
    assert [(port.name, port.shape[1:], port.dtype) for port in engine.inputs] == [("image", (3, 16, 16), "float32")]
    x = images(SAMPLES, 99)
    (found,) = (torch.from_numpy(array) for array in engine.run([x.numpy()]))
    singly = torch.cat([torch.from_numpy(engine.run([x[i : i + 1].numpy()])[0]) for i in range(2)])
    with torch.no_grad():
        expected, unquantized = artifact.model(x), exact.model(x)
    assert found.shape == expected.shape
    if form == "float32":
        tolerance = FLOAT_TOLERANCE if device.floats == "float32" else HALF_TOLERANCE
        allowed = APPROXIMATES.get((target, name), tolerance) * root_mean_square(expected)
        assert float((found - expected).abs().max()) <= allowed
        assert float((singly - expected[:2]).abs().max()) <= allowed
    else:
        allowed = INTEGER_SHARE[device.floats] * root_mean_square(expected - unquantized)
        assert root_mean_square(found - expected) <= allowed
        assert root_mean_square(singly - found[:2]) <= allowed
