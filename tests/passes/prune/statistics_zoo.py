"""Small models in which something is computed over channels, or over the weights that read them.

`kept` names the layers whose channels must all stay, `note` those that may lose some with a note; the others are cut, and
what is left must compute exactly what it did.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Between(nn.Module):
    """A layer whose channels are in question, `middle`, another layer and a head. All activations keep zero at zero."""

    def __init__(self, middle, width=32):
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 16, 3, padding=1), middle
        self.last, self.head = nn.Conv2d(width, 12, 1), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(F.relu(self.last(F.relu(self.middle(F.relu(self.first(x)))))).mean((2, 3)))


class Conv(nn.Conv2d):
    """A convolution from 16 to 32 channels whose weight is `standardize`d in each forward pass."""

    def __init__(self, standardize, kernel=1, **more):
        super().__init__(16, 32, kernel, padding=kernel // 2, **more)
        self.standardize = standardize
        self.gain = nn.Parameter(torch.rand(32, 1, 1, 1) + 0.5)
        self.u, self.v = nn.Parameter(torch.randn(1, 32)), nn.Parameter(torch.randn(16 * kernel * kernel, 1))

    def forward(self, x):
        return F.conv2d(x, self.standardize(self, self.weight), self.bias, 1, self.padding)


def by_batch_norm(m, w):
    """timm's StdConv2d."""
    return F.batch_norm(w.reshape(1, w.shape[0], -1), None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)


def by_batch_norm_with_gain(m, w):
    """timm's ScaledStdConv2d."""
    gain = (m.gain * w[0].numel() ** -0.5).view(-1)
    return F.batch_norm(w.reshape(1, w.shape[0], -1), None, None, gain, training=True, eps=1e-6).reshape_as(w)


def by_batch_norm_over_inputs(m, w):
    """Of each input channel over all filters: here it is the filters that must stay."""
    return F.batch_norm(w.transpose(0, 1).flatten(2).transpose(0, 1), None, None, training=True).reshape_as(w)


def by_mean_and_variance(m, w):
    mean, variance = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True, unbiased=False)
    return (w - mean) * torch.rsqrt(variance + 1e-6)


def by_layer_norm(m, w):
    return F.layer_norm(w, w.shape[1:])


def by_group_norm(m, w):
    return F.group_norm(w.transpose(0, 1).flatten(2).transpose(0, 1), 1).reshape_as(w)


def by_instance_norm(m, w):
    return F.instance_norm(w.flatten(1).unsqueeze(0)).reshape_as(w)


def by_norm(m, w):
    """Weight normalization (Salimans and Kingma 2016, arXiv:1602.07868)."""
    return m.gain * w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def by_normalize(m, w):
    return m.gain * F.normalize(w, dim=1)


def by_gram_matrix(m, w):
    flat = w.flatten(1)
    return w * torch.rsqrt(torch.diagonal(flat @ flat.t()).view(-1, 1, 1, 1) + 1e-6)


def by_einsum(m, w):
    return w * torch.rsqrt(torch.einsum("oi,oi->o", w.flatten(1), w.flatten(1)).view(-1, 1, 1, 1) + 1e-6)


def by_singular_value(m, w):
    """Spectral normalization with stored vectors (Miyato et al. 2018, arXiv:1802.05957)."""
    return w / (m.u @ w.flatten(1) @ m.v).abs()


def by_singular_value_of_linear(m, w):
    return w / F.linear(F.linear(m.v.t(), w.flatten(1)), m.u).abs()


def by_softmax(m, w):
    return w * w.flatten(1).softmax(1).view_as(w)


def by_largest(m, w):
    return w / (w.abs().amax((1, 2, 3), keepdim=True) + 1e-6)


def by_sum(m, w):
    return w / (w.abs().flatten(1).sum(1).view(-1, 1, 1, 1) + 1e-6)


def by_running_sum(m, w):
    return w.cumsum(1)


def by_order(m, w):
    return w * (w.sort(1).values > 0)


class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 1)

    def forward(self, x):
        x = self.conv(x)
        n, c, h, w = x.shape
        return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


class Excite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.reduce, self.expand = nn.Conv2d(16, 32, 1), nn.Linear(32, 8), nn.Linear(8, 32)

    def forward(self, x):
        x = self.conv(x)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3)))))).unsqueeze(-1).unsqueeze(-1)


class Over(nn.Module):
    """`function` of a convolution's channels."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(16, 32, 1), function

    def forward(self, x):
        return self.function(self.conv(x))


class OfTokens(nn.Module):
    """A norm that takes the tokens for channels: its statistics are over the width."""

    def __init__(self, norm):
        super().__init__()
        self.embed, self.norm, self.last, self.head = nn.Conv2d(3, 16, 4, 4), norm, nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        return self.head(F.relu(self.last(x)).mean(1))


class CosineHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3)
        self.classes = nn.Parameter(torch.randn(5, 12))

    def forward(self, x):
        x = F.relu(self.last(F.relu(self.first(x)))).mean((2, 3))
        return F.linear(F.normalize(x, dim=1), F.normalize(self.classes, dim=1))


WEIGHTS = (
    by_batch_norm, by_batch_norm_with_gain, by_batch_norm_over_inputs, by_mean_and_variance, by_layer_norm, by_group_norm,
    by_instance_norm, by_norm, by_normalize, by_gram_matrix, by_einsum, by_singular_value, by_singular_value_of_linear,
    by_softmax, by_largest, by_sum, by_running_sum, by_order,
)  # fmt: skip

ZOO = {
    **{
        f"{function.__name__} {kernel}x{kernel}": (
            lambda function=function, kernel=kernel: Between(Conv(function, kernel)),
            {"middle" if function is by_batch_norm_over_inputs else "first"},
            set(),
        )
        for function in WEIGHTS
        for kernel in (1, 3)
        if kernel == 1 or function in (by_batch_norm, by_batch_norm_with_gain, by_layer_norm, by_normalize, by_einsum)
    },
    "instance norm": (
        lambda: Between(nn.Sequential(nn.Conv2d(16, 32, 1), nn.InstanceNorm2d(32, affine=True))),
        set(),
        set(),
    ),
    "many groups": (lambda: Between(nn.Sequential(nn.Conv2d(16, 32, 1), nn.GroupNorm(16, 32))), set(), set()),
    "few groups": (lambda: Between(nn.Sequential(nn.Conv2d(16, 32, 1), nn.GroupNorm(2, 32))), set(), {"middle.0"}),
    "channel shuffle": (lambda: Between(Shuffle()), set(), set()),
    "squeeze and excitation": (lambda: Between(Excite()), set(), set()),
    "softmax of channels": (lambda: Between(Over(lambda x: x.softmax(1))), {"middle.conv"}, set()),
    "mean of channels": (lambda: Between(Over(lambda x: x - x.mean(1, keepdim=True))), {"middle.conv"}, set()),
    "largest of channels": (lambda: Between(Over(lambda x: x - x.amax(1, keepdim=True))), {"middle.conv"}, set()),
    "unit channels": (lambda: Between(Over(lambda x: F.normalize(x, dim=1))), {"middle.conv"}, set()),
    "channels in order": (lambda: Between(Over(lambda x: x * (x.sort(1).values > 0))), {"middle.conv"}, set()),
    "top channels": (lambda: Between(Over(lambda x: x * (x > x.topk(3, 1).values[:, -1:]))), {"middle.conv"}, set()),
    "layer norm": (lambda: OfTokens(nn.LayerNorm(16)), set(), {"embed"}),
    "rms norm": (lambda: OfTokens(nn.RMSNorm(16)), set(), {"embed"}),
    "instance norm of tokens": (lambda: OfTokens(nn.InstanceNorm1d(16)), {"embed"}, set()),
    "group norm of tokens": (lambda: OfTokens(nn.GroupNorm(4, 16)), {"embed"}, set()),
    "cosine head": (CosineHead, {"last"}, set()),
}  # fmt: skip
"""By name: the model, the layers that keep all channels, and those that lose some with a note."""
