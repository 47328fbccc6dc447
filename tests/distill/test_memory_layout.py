"""Channels last where it works; where it does not, the model stays as it was."""

import copy

import pytest
import torch
from torch import nn

from kdc.distill.memory_layout import settle_layout


class Net(nn.Module):
    """Two convolutions; the subclasses end in what goes wrong with channels last."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))

    def features(self, x):
        return self.second(self.first(x).relu()).relu()


class ByView(Net):
    def forward(self, x):
        x = self.features(x)
        return self.head(x.view(x.size(0), -1))


class ByStrides(Net):
    def forward(self, x):
        x = self.features(x)
        return self.head(x.as_strided((len(x), 144), (144, 1)))


class WithTable(Net):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 4, 6, 6))

    def forward(self, x):
        return self.head(self.features(x).flatten(1) + self.table.view(1, 144))


class Asserting(Net):
    def forward(self, x):
        x = self.features(x)
        assert x.is_contiguous()
        return self.head(x.flatten(1))


class InTheBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(-1).view(gradient.shape)


class BackwardByView(Net):
    def forward(self, x):
        return self.head(self.second(InTheBackward.apply(self.first(x))).flatten(1))


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv3d(1, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.layer(x).mean((2, 3, 4)))


def channels_last(model):
    return [p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.dim() == 4]


def test_a_model_that_works_so_gets_channels_last_and_the_same_values():
    model, x = Net(), torch.randn(4, 3, 6, 6)
    before = copy.deepcopy(model)
    assert settle_layout(model, (x,))
    assert all(channels_last(model))
    assert model.features(x).is_contiguous(memory_format=torch.channels_last)  # whatever the input's layout is
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    torch.testing.assert_close(model(x), before(x))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize("kind", [ByView, ByStrides, WithTable, Asserting, BackwardByView])
def test_a_model_that_fails_or_answers_otherwise_keeps_its_layout(kind):
    model, x = kind(), torch.randn(4, 3, 6, 6)
    before = copy.deepcopy(model)
    assert not settle_layout(model.to(memory_format=torch.channels_last), (x,))  # as a student of another's weights
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    torch.testing.assert_close(model(x), before(x))
    model(x).sum().backward()


def test_weights_of_five_dimensions_are_let_be():
    model = Volumes()
    assert not settle_layout(model, (torch.randn(2, 1, 5, 5, 5),))
    model(torch.randn(2, 1, 5, 5, 5))


def test_the_layout_is_kept_by_copies():
    model = Net()
    settle_layout(model, (torch.randn(2, 3, 6, 6),))
    assert all(channels_last(copy.deepcopy(model)))
