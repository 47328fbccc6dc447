"""A small residual teacher that is trained as far as random statistics go, and artifacts of any ends."""

import functools

import pytest
import torch
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.spec import TensorSpec
from passes.search.families import residual
from passes.search.spaces import PlainLayer, ResidualBlock, ResidualStudent

CLASSES = 7
IMAGES = {"1x8x8": (1, 8, 8), "3x32x20": (3, 32, 20)}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def artifact(model, image=(1, 8, 8), dtype="float32", outputs=("batch", CLASSES)):
    """The model with one input of these sizes, [batch, ...]."""
    return Artifact(
        model,
        (TensorSpec(name="image", shape=("batch", *image), dtype=dtype),),
        (TensorSpec(name="logits", shape=outputs),),
    )


@functools.cache
def settled():
    """A residual network in which no statistic is zero or one; evaluation mode."""
    student = ResidualStudent(
        stem=PlainLayer(channels=8),
        blocks=(
            ResidualBlock(channels=8),
            ResidualBlock(channels=16, stride=2),
            ResidualBlock(channels=16),
            ResidualBlock(channels=16),
        ),
    )
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = residual(student, 1, CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def teacher():
    return artifact(settled())


@pytest.fixture(scope="session")
def artifact_of():
    return artifact


@pytest.fixture(params=IMAGES)
def image(request):
    return IMAGES[request.param]


@pytest.fixture(scope="session")
def batch():
    """16 images [16, 1, 8, 8] and their classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(CLASSES, (16,), generator=generator)
