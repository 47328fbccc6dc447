"""Counts the multiply-accumulates of whatever torch runs, kernel by kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Count what runs inside, products of weights alone as well; two FLOPs are one multiply-accumulate. Begins at zero.

    torch's counter knows products, convolutions and some fused kernels. The others (attention on a CPU, the fast path
    of `nn.MultiheadAttention` and of the encoder layer, oneDNN's recurrent layers) would count as nothing, so that they
    are switched off inside, and what runs instead is made of products.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    (onednn, *_) = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call]
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_VECTORS) as counter:
            yield counter
    finally:
        torch.backends.mkldnn.set_flags(_enabled=onednn, _fp32_precision=None)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(fast)


def _of_first(first: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(first)


def _of_second(_: Any, second: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * prod(second)


_VECTORS = {torch.ops.aten.mv: _of_first, torch.ops.aten.dot: _of_first, torch.ops.aten.addmv: _of_second}
"""Products with a vector, which torch's counter leaves out. They get shapes in the place of tensors."""
