"""What is noticed of a teacher when it is loaded: outputs that depend on the batch, and gradients that are cut off."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdc.core.errors import ModelError
from kdc.driver.batch_check import check_batches, distinct
from kdc.driver.gradient_check import check_gradients

SAMPLES = (torch.randn(12, 6, generator=torch.Generator().manual_seed(1)),)


class Plain(nn.Module):
    """What the others change."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.norm = nn.Linear(6, 8), nn.Linear(8, 4), nn.BatchNorm1d(8)
        self.gate, self.codes = nn.Linear(6, 1), nn.Embedding(5, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        return self.head(self.norm(self.first(x)).relu())


class SoftmaxOverTheBatch(Plain):
    def forward(self, x):
        return functional.softmax(self.head(self.first(x)), dim=0)


class MeanOfTheBatch(Plain):
    def forward(self, x):
        center = x.mean(0)
        return self.head(self.first(x - center))


class MaximumOfTheBatch(Plain):
    def forward(self, x):
        return self.head(self.first(x / x.abs().max()))


class StillTraining(Plain):
    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self


class WithoutStatistics(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, track_running_stats=False)

    def forward(self, x):
        return self.head(self.norm(self.first(x).reshape(-1, 2, 4)).flatten(1))


class LengthFirst(Plain):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.out(self.rnn(x.reshape(-1, 2, 3))[0][:, -1])


class WrongView(Plain):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.out(self.rnn(x.view(2, -1, 3))[0][-1])


class NeighborAdded(Plain):
    def forward(self, x):
        x = x.clone()
        x[1:] = x[1:] + 0.1 * x[:1]
        return self.head(self.first(x))


MIXING = {
    SoftmaxOverTheBatch: ("SoftmaxOverTheBatch mixes samples, in softmax", "softmax("),
    MeanOfTheBatch: ("MeanOfTheBatch mixes samples, in mean", "x.mean(0)"),
    MaximumOfTheBatch: ("MaximumOfTheBatch mixes samples, in max", "x.abs().max()"),
    WithoutStatistics: ("norm (BatchNorm1d) mixes samples, in batch_norm", "self.norm("),
    LengthFirst: ("rnn (GRU) mixes samples, in gru", "self.rnn("),
    WrongView: ("WrongView mixes samples, in view", "x.view(2"),
    NeighborAdded: ("NeighborAdded mixes samples", "x[1:]"),
}


def line_of(kind: type, text: str) -> str:
    """file:line of the first line of a class that holds this text."""
    lines, start = inspect.getsourcelines(kind)
    return f"{__file__}:{next(start + i for i, line in enumerate(lines) if text in line)}"


@pytest.mark.parametrize("kind", MIXING)
def test_a_module_that_mixes_samples_is_named_with_the_users_line(kind):
    words, text = MIXING[kind]
    with pytest.raises(ModelError) as caught:
        check_batches(kind().eval(), SAMPLES, "teacher t")
    assert words in str(caught.value)
    assert f"at {line_of(kind, text)}" in str(caught.value)
    assert "change with the other samples of its batch" in str(caught.value)


def test_a_batch_norm_that_eval_does_not_reach_is_told_though_one_sample_alone_fails():
    with pytest.raises(ModelError, match=r"normalizes by the batch in evaluation mode \(norm\).*more than 1 value"):
        check_batches(StillTraining().eval(), SAMPLES, "teacher t")


class Squeezed(Plain):
    def forward(self, x):
        return functional.softmax(functional.avg_pool1d(self.first(x)[:, None], 2).squeeze(), dim=1)


class Deep(Plain):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU()) for _ in range(150)))

    def forward(self, x):
        return self.head(self.first(self.layers(x)))


class Rounding(Plain):
    def forward(self, x):
        return self.head((50 * self.first(x)).round() / 50)


@pytest.mark.parametrize("kind", [Plain, Squeezed, Deep, Rounding])
def test_a_model_whose_outputs_are_each_samples_own_passes(kind):
    check_batches(kind().eval(), SAMPLES, "teacher t")


def test_dropout_that_eval_does_not_stop_is_not_taken_for_mixing():
    class Dropping(Plain):
        def forward(self, x):
            return self.head(self.first(functional.dropout(x, 0.2)))

    with pytest.raises(ModelError, match=r"two calls .* differ.*Dropping draws random numbers .* in dropout at"):
        check_batches(Dropping().eval(), SAMPLES, "teacher t")


def test_samples_that_are_compared_are_unlike_each_other():
    same = torch.zeros(40, 3)
    same[7] = 1
    (found,) = distinct((same,), 8, torch.Generator().manual_seed(0))
    assert len(found) == 2
    check_batches(nn.Linear(3, 2), (found[:1],), "teacher t")  # one sample has no company


class NoGrad(Plain):
    def forward(self, x):
        with torch.no_grad():  # here
            x = self.first(x)
        return self.head(x)


class NoGradEverywhere(Plain):
    @torch.no_grad()  # here
    def forward(self, x):
        return self.head(self.first(x))


class Inference(Plain):
    def forward(self, x):
        with torch.inference_mode():  # here
            x = self.first(x)
        return self.head(x)


class InferenceEverywhere(Plain):
    @torch.inference_mode()  # here
    def forward(self, x):
        return self.head(self.first(x))


class SwitchedOff(Plain):
    def forward(self, x):
        torch.set_grad_enabled(False)  # here
        x = self.first(x)
        torch.set_grad_enabled(True)
        return self.head(x)


class InTrainingAlone(Plain):
    def features(self, x):
        return self.first(x)

    def forward(self, x):
        with torch.set_grad_enabled(not self.training):  # here
            x = self.features(x)
        return self.head(x)


class Detached(Plain):
    def forward(self, x):
        return self.head(self.first(x).detach())  # here


class Data(Plain):
    def forward(self, x):
        return self.head(self.first(x).data)  # here


CUT = [NoGrad, NoGradEverywhere, Inference, InferenceEverywhere, SwitchedOff, InTrainingAlone, Detached, Data]


@pytest.mark.parametrize("kind", CUT)
def test_what_keeps_gradients_from_weights_is_named_with_the_users_line(kind):
    model = kind().eval().requires_grad_(False)
    with pytest.raises(ModelError, match=r"first\.weight, first\.bias") as caught:
        check_gradients(model, SAMPLES, "teacher t")
    assert f"at {line_of(kind, '# here')}" in str(caught.value)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.is_grad_enabled()


class DetachedScale(Plain):
    def forward(self, x):
        return self.head(self.first(x) * self.scale.detach() * (2 * self.scale).detach())


class Codebook(Plain):
    """Vector quantization with a straight-through estimator, and a mean that is kept without gradients."""

    def forward(self, x):
        z = self.first(x)
        with torch.no_grad():
            nearest = torch.cdist(z, self.codes.weight).argmin(1)
            self.mean.mul_(0.9).add_(z.mean(0), alpha=0.1)
            self.scale.clamp_(0, 2)
        return self.head(z + (self.codes(nearest) - z).detach())


class DetachedGate(Plain):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 64), nn.Linear(64, 4)

    def forward(self, x):
        return self.head(self.first(x)) * self.gate(x).sigmoid().detach()


class FrozenByTheUser(Plain):
    def forward(self, x):
        self.first.requires_grad_(False)
        return self.head(self.first(x))


class Unused(Plain):
    def forward(self, x):
        with torch.no_grad():
            unused = self.gate(x) * 0
        return self.head(self.first(x)) + unused


class Rounded(Plain):
    def forward(self, x):
        return self.head(self.first(x).round())


@pytest.mark.parametrize("kind", [Plain, DetachedScale, Codebook, DetachedGate, FrozenByTheUser, Unused, Rounded])
def test_what_is_meant_to_have_no_gradient_is_let_be(kind):
    check_gradients(kind().eval().requires_grad_(False), SAMPLES, "teacher t")
