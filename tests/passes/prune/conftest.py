"""Models whose statistics are not the ones they were made with, their graphs (found once), and a context."""

import functools
from types import SimpleNamespace

import pytest
import torch
from prune_zoo import ZOO
from torch import nn

from kdc.core.artifact import Artifact, example
from kdc.core.budget import Budget, Cost
from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.core.device import Device
from kdc.core.spec import TensorSpec
from passes.prune.channels import ChannelGraph
from passes.prune.probe import probe

IMAGES = (TensorSpec(name="image", shape=("batch", 3, 16, 16), dtype="float32"),)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def settle(model):
    """Random weights and statistics, so that nothing is zero or one by default; evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        if getattr(module, "weight", None) is not None and module.weight.dim() == 1:
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator) if getattr(module, "bias", None) is not None else None
    return model.eval()


@functools.cache
def known(name):
    """A model of the zoo and its graph."""
    torch.manual_seed(0)
    model = settle(ZOO[name]())
    return SimpleNamespace(model=model, graph=probe(model, ChannelGraph.of(model, IMAGES), IMAGES))


@pytest.fixture(scope="session")
def zoo():
    return known


@pytest.fixture(scope="session")
def artifact_of():
    def make(model, inputs=IMAGES):
        with torch.no_grad():
            outputs = model(*(example(spec, 2) for spec in inputs))
        spec = TensorSpec(name="out", shape=("batch", *outputs.shape[1:]), dtype="float32")
        return Artifact(model, inputs, (spec,))

    return make


class Classification:
    """The part of the task that pruning asks."""

    def loss(self, outputs, labels):
        return nn.functional.cross_entropy(outputs, labels, reduction="none")


@pytest.fixture
def context_of(tmp_path):
    def make(model, *, budget=None, forecast=None, teacher_cost=None, events=None, alignment=1, seed=0):
        generator = torch.Generator().manual_seed(1)
        split = Split((torch.randn(96, 3, 16, 16, generator=generator),), torch.randint(5, (96,), generator=generator))
        events = [] if events is None else events

        def forbidden(*_):
            raise AssertionError("no forecast is needed here")

        return Context(
            step="0-prune",
            device=Device(name="test", summary="", runtime="none", threads=1, opset=18, channel_alignment=alignment),
            task=Classification(),
            data=Splits(split, split, split, split, fingerprint="0"),
            teacher=model,
            budget=budget or Budget(),
            seed=seed,
            work=tmp_path,
            cache=tmp_path,
            emit=events.append,
            teacher_cost=lambda: teacher_cost or Cost(latency_ms=1.0, size_mb=1.0, macs=1e6, parameters=1),
            forecasts=(lambda artifacts: [forecast(a) for a in artifacts]) if forecast else forbidden,
        )

    return make
