"""Models of the lowering zoo, each traced, quantized and exported once, and a context to quantize in."""

import functools

import onnx_ir
import onnxruntime
import pytest
import torch
from lowering_zoo import artifact, images

from kdc.core.budget import Budget
from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.core.device import Device, QuantizationScheme
from kdc.tasks.classification import Classification
from passes.export.lower import lower
from passes.quantize import Quantize

OPSET = 21
DEVICE = Device(
    name="test",
    summary="",
    runtime="onnxruntime",
    threads=1,
    opset=OPSET,
    quantization=QuantizationScheme(
        activations="uint8", symmetric_activations=False, per_channel=True, int32_bias=True, source=""
    ),
)


class Lowered:
    """Ways of one zoo model through the passes; each is gone once in a test run."""

    @staticmethod
    @functools.cache
    def float(name):
        return artifact(name)

    @staticmethod
    @functools.cache
    def exported(name):
        return lower(Lowered.float(name), OPSET)

    @staticmethod
    @functools.cache
    def decision(name):
        return Quantize().decide(Lowered.float(name), context(Lowered.float(name).model))

    @staticmethod
    @functools.cache
    def quantized(name):
        return Quantize().apply(Lowered.float(name), Lowered.decision(name))

    @staticmethod
    @functools.cache
    def integers(name):
        return lower(Lowered.quantized(name), OPSET)


def context(teacher, work=None, events=None, budget=None, device=DEVICE):
    """The teacher's own answers are the labels."""

    def split(count, seed):
        inputs = images(count, seed)
        with torch.no_grad():
            return Split((inputs,), teacher(inputs).argmax(1))

    def forbidden(*_):
        raise AssertionError("quantization measures no latency")

    return Context(
        step="quantize",
        device=device,
        task=Classification(),
        data=Splits(split(256, 2), split(64, 3), split(128, 4), split(1, 5), fingerprint="0"),
        teacher=teacher,
        budget=budget or Budget(),
        seed=0,
        work=work,
        cache=work,
        emit=(lambda event: None) if events is None else events.append,
        teacher_cost=forbidden,
        forecasts=forbidden,
    )


def run(model: onnx_ir.Model, inputs: torch.Tensor) -> torch.Tensor:
    """The model's first output in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {model.graph.inputs[0].name: inputs.numpy()})[0])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lowered():
    return Lowered


@pytest.fixture(scope="session")
def in_runtime():
    return run


@pytest.fixture(scope="session")
def quantization_context():
    return context


@pytest.fixture(scope="session")
def quantization_device():
    return DEVICE
