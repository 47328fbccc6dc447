"""Integer files on other processors: an x86 with AVX2 and no VNNI, and an arm64, both emulated by qemu-user.

One file on two processors is held to what parity allows between torch and a file: half of what quantization changes.
The arm64 root is made by `.ci/arm64_root`; `KDC_ARM64_ROOT` names it.
"""

import subprocess
from functools import cache

import numpy as np
import pytest
import torch
from other_processors import ARM64, HASWELL, HERE, answers_on, lacks, python_on
from test_parity import INTEGER_SHARE, MODELS, block, floats, images, lowered, quantized  # noqa: F401 (a fixture)
from torch import nn
from torch.nn import functional as F

from kdc.core.artifact import Artifact
from targets.device import load_device
from targets.job import fields_of
from targets.machine import environment
from targets.preflight import look
from targets.runtime import runtime_of

SAMPLES = 8
pytestmark = pytest.mark.slow


class ConvolutionalAttention(nn.Module):
    """Queries, keys and values are integers: the attention multiplies activations by activations."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = block(3, 16, stride=2), nn.Linear(16, 10)
        self.query, self.key, self.value, self.out = (nn.Conv2d(16, 16, 1) for _ in range(4))

    def forward(self, image):
        x = F.relu(self.stem(image))
        q, k, v = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = (q.transpose(1, 2) @ k / 4).softmax(-1)
        x = x + self.out((v @ weights.transpose(1, 2)).reshape(-1, 16, 8, 8))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def networks(floats):  # noqa: F811
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = ConvolutionalAttention().eval()
    first = floats["convolutions"]
    return {**floats, "attention by convolutions": Artifact(model, first.inputs, first.outputs)}


@pytest.fixture(scope="module")
def compared(networks, tmp_path_factory):
    """(target, processor): {network: how far its file's answers move there, as a share of what quantization changes}."""
    x = images(SAMPLES, 99)

    def rms(values):
        return float(np.sqrt(np.mean(values**2)))

    @cache
    def files(target):
        device, folder = load_device(target), tmp_path_factory.mktemp(target)
        found = {}
        for name, artifact in networks.items():
            path = lowered(quantized(artifact, device), device, folder / f"{name}.onnx")
            found[name] = runtime_of(device).build(path, folder / name, device).path
        tasks = [(fields_of(device), path) for path in found.values()]
        return tasks, answers_on(HERE, tasks, x.numpy(), folder / "here")

    @cache
    def shares(target, processor):
        reason = lacks(processor)
        if reason is not None:
            pytest.skip(reason)
        tasks, here = files(target)
        there = answers_on(processor, tasks, x.numpy(), tmp_path_factory.mktemp(processor))
        with torch.no_grad():
            exact = [artifact.model(x).numpy() for artifact in networks.values()]
        rows = zip(networks, here, there, exact, strict=True)
        return {name: rms(b - a) / rms(a - e) for name, a, b, e in rows}

    return shares


@pytest.mark.parametrize("processor", [HASWELL, ARM64])
def test_a_file_in_integers_answers_alike_on_a_processor_without_vnni(compared, processor):
    found = compared("cpu-ort", processor)
    assert set(found) >= set(MODELS)
    assert max(found.values()) <= INTEGER_SHARE["float32"], found


def test_with_weights_of_8_bits_it_does_not(compared):
    found = compared("cpu-ort-vnni", HASWELL)
    assert max(found.values()) > 2 * INTEGER_SHARE["float32"], found


@pytest.mark.skipif(lacks(HASWELL) is not None, reason=str(lacks(HASWELL)))
def test_another_processor_of_the_same_architecture_is_seen_to_be_emulated():
    code = "from targets.emulation import is_emulated; print(is_emulated())"
    for processor, emulated in ((HERE, "False"), (HASWELL, "True")):
        done = subprocess.run([*python_on(processor), "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == emulated


def test_this_machines_features_are_in_its_environment():
    found = environment(look(1))
    assert found["processor_features"] is None or set(found["processor_features"]) & {"avx2", "asimd"}
    assert found["architecture"]
