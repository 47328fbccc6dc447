"""A small network in blocks, trained on bars in 8x8 pictures; a context that prices models by their work."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kdc.core.artifact import Artifact
from kdc.core.budget import Budget, Cost
from kdc.core.cascade import Cascade
from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.core.device import Device, QuantizationScheme
from kdc.core.spec import TensorSpec
from kdc.distill.settings import Training
from kdc.tasks.classification import Classification

DEVICE = Device(
    name="test",
    summary="",
    runtime="onnxruntime",
    threads=1,
    opset=21,
    quantization=QuantizationScheme(
        activations="uint8", symmetric_activations=False, per_channel=True, int32_bias=True, source=""
    ),
)
SHORT = Training(epochs=3, batch=32, learning_rate=5e-3, ema=0.9, checkpoint_seconds=1e-6)
HEAD_MACS = 100


def conv(channels_in, channels, kernel=3, stride=1):
    return nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    def __init__(self, channels_in, channels, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(channels_in, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels), nn.BatchNorm2d(channels)
        self.shortcut = conv(channels_in, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three blocks, and a view by the batch's size, as many models have it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(1, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16, 2), Block(16, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        return self.head(x.view(x.shape[0], -1))


def pictures(n, seed):
    """Noise with a bright bar (top, bottom, left or right), brighter in some pictures than in others."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    images = rng.standard_normal((n, 1, 8, 8)).astype(np.float32)
    for image, label in zip(images[:, 0], labels, strict=True):
        bar = image[[0, -1][label], :] if label < 2 else image[:, [0, -1][label - 2]]
        bar += rng.uniform(0.3, 3)
    return Split((torch.from_numpy(images),), torch.from_numpy(labels))


@functools.cache
def trained():
    """The network as a teacher."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNet().train()
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        data = pictures(512, 1)
        for _ in range(8):
            for batch in data.batches(64):
                optimizer.zero_grad()
                F.cross_entropy(model(batch.inputs[0]), batch.labels).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)


def macs_ms(artifacts):
    """A microsecond for a thousand multiply-accumulates of the inputs' way; a cascade goes the way its thresholds say."""
    costs = []
    for artifact in artifacts:
        model = artifact.model
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = torch.zeros(1, 1, 8, 8)
            if isinstance(model, Cascade):
                for stage, head, threshold in zip(model.stages, model.exits, model.thresholds, strict=False):
                    x = stage(x)
                    head(x)
                    if threshold <= 0:
                        break
                else:
                    model.stages[-1](x)
            else:
                model(x)
        macs = counter.get_total_flops() / 2
        costs.append(Cost(latency_ms=macs / 1e6, size_mb=1.0, macs=macs, parameters=1))
    return costs


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def model():
    return copy.deepcopy(trained())


@pytest.fixture
def artifact(model):
    return Artifact(
        model,
        (TensorSpec(name="image", shape=("batch", 1, 8, 8)),),
        (TensorSpec(name="logits", shape=("batch", 4)),),
    )


@pytest.fixture
def context_of(tmp_path):
    def make(*, events=None, forecasts=macs_ms, seed=0, name="work"):
        work = tmp_path / name
        work.mkdir(exist_ok=True)
        return Context(
            step="route",
            device=DEVICE,
            task=Classification(),
            data=Splits(pictures(320, 1), pictures(128, 2), pictures(256, 3), pictures(1, 4), fingerprint="0"),
            teacher=copy.deepcopy(trained()),
            budget=Budget(),
            seed=seed,
            work=work,
            cache=tmp_path / "cache",
            emit=(lambda event: None) if events is None else events.append,
            teacher_cost=lambda: None,
            forecasts=forecasts,
        )

    return make


@pytest.fixture(scope="session")
def short():
    return SHORT


@pytest.fixture(scope="session")
def priced_by_macs():
    return macs_ms
