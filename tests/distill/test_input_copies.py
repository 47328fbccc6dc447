"""A model that writes into its inputs gets copies of them; another gets none."""

import copy

import pytest
import torch
from torch import nn

from kdc.core.spec import TensorSpec
from kdc.core.trace import trace
from kdc.distill.copies import bare_copy
from kdc.distill.input_copies import copies_inputs, copy_inputs_if_changed
from passes.quantize.graph import plain_graph

SPECS = (TensorSpec(name="x", shape=("batch", 4), dtype="float32"),)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x + 1)


class Scaled(Plain):
    def forward(self, x):
        x.sub_(0.1).div_(0.5)
        return self.layer(x)


class Zeroed(Plain):
    def forward(self, x):
        x[:, 0] = 0
        return self.layer(x)


class Rectified(Plain):
    def forward(self, x):
        return self.layer(nn.functional.relu(x, inplace=True))


class ByNumbers(Plain):
    def forward(self, x):
        x.data.mul_(2)
        return self.layer(x)


class InTraining(Plain):
    def forward(self, x):
        return self.layer(x.mul_(0.9) if self.training else x)


class OfTwo(Plain):
    def forward(self, x, y):
        y += x
        return self.layer(y)


def samples(count=1):
    return tuple(torch.rand(5, 4) + 0.1 for _ in range(count))


@pytest.mark.parametrize(
    ("kind", "count"), [(Scaled, 1), (Zeroed, 1), (Rectified, 1), (ByNumbers, 1), (InTraining, 1), (OfTwo, 2)]
)
def test_a_model_that_writes_into_its_inputs_gets_copies_wherever_it_is_called(kind, count):
    model = kind()
    given, other = samples(count), samples(count)
    before, expected = [tensor.clone() for tensor in given], copy.deepcopy(model)(*(t.clone() for t in other))
    assert copy_inputs_if_changed(model, given)
    for one in (model, copy.deepcopy(model), bare_copy(model)):
        for training in (True, False):
            one.train(training)(*given)
        assert all(map(torch.equal, given, before))
        assert copies_inputs(one)
    torch.testing.assert_close(model.train()(*other), expected)
    assert len(model._forward_pre_hooks) == 1
    assert copy_inputs_if_changed(model, given)
    assert len(model._forward_pre_hooks) == 1  # once is enough


def test_a_model_that_leaves_its_inputs_alone_gets_them_as_they_are():
    model = Plain()
    assert not copy_inputs_if_changed(model, samples())
    assert not model._forward_pre_hooks


def test_statistics_of_a_batch_norm_stay_as_they_are():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm1d(4))
    assert copy_inputs_if_changed(model, samples())
    assert int(model[1].num_batches_tracked) == 0
    assert model.training


def test_the_exported_graph_takes_its_input_and_leaves_it_as_it_is():
    model, (x,) = Scaled().eval(), samples()
    expected = model(x.clone())
    copy_inputs_if_changed(model, (x,))
    program, graph = trace(model, SPECS), plain_graph(model, SPECS)
    kept = x.clone()
    for form in (program.module(check_guards=False), graph):
        torch.testing.assert_close(form(x), expected)
        assert torch.equal(x, kept)
    assert len(program.graph_signature.output_specs) == 1  # and no changed input beside the outputs
