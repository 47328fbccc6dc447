"""What torch runs is counted whatever kernel it chooses: against formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdc.core.torch_macs import counted

TOKENS, WIDTH = 7, 8


def tokens():
    return torch.randn(1, TOKENS, WIDTH)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x)


LAYERS = {
    "attention": (lambda: lambda x: F.scaled_dot_product_attention(x, x, x), 2 * TOKENS * TOKENS * WIDTH),
    "multi-head attention": (
        lambda: SelfAttention().eval(),
        4 * TOKENS * WIDTH * WIDTH + 2 * TOKENS * TOKENS * WIDTH,
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True).eval(),
        4 * TOKENS * WIDTH * WIDTH + 2 * TOKENS * TOKENS * WIDTH + 2 * TOKENS * WIDTH * 12,
    ),
    "lstm": (lambda: nn.LSTM(WIDTH, 5, batch_first=True), TOKENS * 4 * 5 * (WIDTH + 5)),
    "gru": (lambda: nn.GRU(WIDTH, 5, batch_first=True), TOKENS * 3 * 5 * (WIDTH + 5)),
    "matrix by vector": (lambda: lambda x: x[0] @ x[0, 0], TOKENS * WIDTH),
    "vector by vector": (lambda: lambda x: x[0, 0] @ x[0, 1], WIDTH),
    "sum and matrix by vector": (lambda: lambda x: torch.addmv(x[0, :, 0], x[0], x[0, 0]), TOKENS * WIDTH),
    "elementwise": (lambda: lambda x: x * x, 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kernel_counts(name):
    make, macs = LAYERS[name]
    layer = make()
    with torch.no_grad(), counted() as counter:
        layer(tokens())
    assert counter.get_total_flops() == 2 * macs


def test_torchs_own_choices_come_back():
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.set_flags(_fp32_precision=None)
    with pytest.raises(ZeroDivisionError), counted():
        1 / 0  # noqa: B018
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.set_flags(_fp32_precision=None)) == before
