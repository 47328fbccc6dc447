"""Small models whose multiply-accumulates are made in all the ways that torch has."""

import torch
import torch.nn.functional as F
from torch import nn


class Tokens(nn.Module):
    """Sixteen patches of an image, `mix` between two layers, and a head. `mix` takes and gives [N, 16, 16]."""

    def __init__(self, mix=None):
        super().__init__()
        self.embed, self.widen, self.head = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 16), nn.Linear(16, 5)
        self.after, self.narrow = nn.Linear(16, 12), nn.Linear(12, 16)
        self.mix = mix or nn.Identity()

    def forward(self, x):
        x = self.widen(F.gelu(self.embed(x)).flatten(2).transpose(1, 2))
        x = x + self.mix(x)
        return self.head((x + self.narrow(F.relu(self.after(x)))).mean(1))


class Heads(nn.Module):
    """Attention in the words of `attend`, which takes q, k, v of shape [N, heads, T, width]."""

    def __init__(self, attend, heads=4):
        super().__init__()
        self.qkv, self.out, self.heads, self.attend = nn.Linear(16, 48), nn.Linear(16, 16), heads, attend

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(n, t, -1))


def by_matmul(q, k, v):
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


def by_bmm(q, k, v):
    n, heads, t, _ = q.shape
    q, k, v = (part.reshape(n * heads, t, -1) for part in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).view(n, heads, t, -1)


def by_baddbmm(q, k, v):
    n, heads, t, _ = q.shape
    q, k, v = (part.reshape(n * heads, t, -1) for part in (q, k, v))
    scores = torch.baddbmm(torch.zeros(1, 1, t), q, k.transpose(1, 2), alpha=0.5)
    return (scores.softmax(-1) @ v).view(n, heads, t, -1)


def by_einsum(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


def by_free_einsum(q, k, v):
    return torch.einsum("...qk,...kd->...qd", torch.einsum("...qd,...kd->...qk", q, k).softmax(-1), v)


def linear_attention(q, k, v):
    """Katharopoulos et al. 2020, arXiv:2006.16236."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.transpose(-2, -1) @ v)


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def fused_with_scale(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=0.5)


def fused_with_mask(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(16, 16, dtype=torch.bool).tril())


class SharedKeys(nn.Module):
    """Four heads of queries on two of keys and values (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 4, 4).transpose(1, 2)
        k, v = self.kv(x).view(n, t, 2, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return y.transpose(1, 2).reshape(n, t, 16)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind, **more):
        super().__init__()
        self.cell = kind(16, 8, batch_first=True, bidirectional=True, **more)

    def forward(self, x):
        return self.cell(x)[0]


class Windows(nn.Module):
    """Four windows of an image, each as a sample of its own: the layers' batch is four times the model's."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = (
            nn.Conv2d(3, 12, 3, padding=1),
            nn.Conv2d(12, 8, 3, padding=1),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(n * 4, c, h // 2, w // 2)
        return self.head(F.relu(self.inner(x)).mean((2, 3)).view(n, 4, -1).mean(1))


class Gated(nn.Module):
    """Products that are elementwise and count nothing: squeeze-and-excitation, a gate, an einsum that sums nothing."""

    def __init__(self):
        super().__init__()
        self.stem, self.reduce, self.expand = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.depthwise, self.head = nn.Conv2d(16, 16, 3, groups=16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.depthwise(F.relu(self.stem(x)))
        x = x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))
        x = torch.einsum("nchw,nchw->nchw", x, torch.tanh(x))
        return self.head(x.mean((2, 3)))


class Convolutions(nn.Module):
    """Grouped, depthwise, strided, dilated, transposed and one-dimensional."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.grouped, self.depthwise = (
            nn.Conv2d(16, 16, 3, groups=4, dilation=2, padding="same"),
            nn.Conv2d(16, 16, 3, groups=16),
        )
        self.up, self.line, self.head = nn.ConvTranspose2d(16, 12, 3, 2), nn.Conv1d(12, 8, 5), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.depthwise(F.relu(self.grouped(F.relu(self.stem(x))))))
        return self.head(F.relu(self.line(F.relu(self.up(x)).flatten(2))).mean(2))


class Bilinear(nn.Module):
    """Second-order pooling (Lin et al. 2015, arXiv:1504.07889), a product with a vector, and one of weights alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(64, 12)
        self.left, self.right = nn.Parameter(torch.randn(5, 6) / 4), nn.Parameter(torch.randn(6, 12) / 4)
        self.vector = nn.Parameter(torch.randn(5))

    def forward(self, x):
        x = F.relu(self.stem(x)).flatten(2)
        y = F.relu(self.head((x @ x.transpose(1, 2) / 196).flatten(1)))
        y = F.linear(y, self.left @ self.right)
        return y + (y @ self.vector).unsqueeze(1)


class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(768, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5))


ZOO = {
    "mlp": Mlp,
    "convolutions": Convolutions,
    "windows": Windows,
    "gated": Gated,
    "bilinear": Bilinear,
    "tokens": Tokens,
    "multi-head attention": lambda: Tokens(SelfAttention()),
    "encoder layer": lambda: Tokens(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)),
    **{
        attend.__name__: lambda attend=attend: Tokens(Heads(attend))
        for attend in (
            by_matmul, by_bmm, by_baddbmm, by_einsum, by_free_einsum, linear_attention, fused, fused_with_scale,
            fused_with_mask,
        )
    },
    "shared keys": lambda: Tokens(SharedKeys()),
    "gru": lambda: Tokens(Recurrent(nn.GRU)),
    "lstm": lambda: Tokens(Recurrent(nn.LSTM)),
    "rnn": lambda: Tokens(Recurrent(nn.RNN)),
}  # fmt: skip
