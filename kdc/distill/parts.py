"""A batch in parts: what does not fit into memory at once, or is shared by processes, is seen part by part.

The gradient of the whole is the sum of the parts' where each example's loss is its own. What looks across a batch
(BatchNorm, contrast between examples) sees a part alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from kdc.distill.policy import Batch, Drawn

_LARGEST_KEPT = 2**20  # numbers in a buffer


def parts(count: int, of: int) -> list[slice]:
    """`of` neighbouring slices of `count` examples, whose sizes differ by one at most."""
    edges = [i * count // of for i in range(of + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def cut(drawn: Drawn, where: slice, part: int) -> Drawn:
    """These examples of a drawn batch, as its part of this number."""
    return replace(
        drawn,
        part=part,
        index=drawn.index[where],
        inputs=tuple(tensor[where] for tensor in drawn.inputs),
        labels=drawn.labels[where],
        teacher=_of(drawn.teacher, where),
        others=_of(drawn.others, where),
        share=_of(drawn.share, where),
    )


def joined(batches: Sequence[Batch]) -> Batch:
    """The batches that were seen one after another as one; of several, without their graphs."""
    first = batches[0]
    if len(batches) == 1:
        return first
    return replace(
        first,
        index=torch.cat([batch.index for batch in batches]),
        inputs=tuple(torch.cat(tensors) for tensors in zip(*(batch.inputs for batch in batches), strict=True)),
        labels=torch.cat([batch.labels for batch in batches]),
        student=torch.cat([batch.student.detach() for batch in batches]),
        teacher=torch.cat([batch.teacher for batch in batches]),
        others=_together([batch.others for batch in batches]),
        share=_together([batch.share for batch in batches]),
    )


def _of(tensor: torch.Tensor | None, where: slice) -> torch.Tensor | None:
    return None if tensor is None else tensor[where]


def _together(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(known) if len(known) == len(tensors) else None


def out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch says that memory does not suffice, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in said or "DefaultCPUAllocator" in said)


class Remembered:
    """Buffers of a module as they were before a step, for a step that fails halfway is done again.

    Those of more than 2^20 numbers are left out, for a copy of them at each step would cost too much: such are banks of
    one row an example, where a step that is done again writes its rows again.
    """

    def __init__(self, module: nn.Module) -> None:
        self._then = [
            (owner, name, buffer, buffer.clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None and buffer.numel() <= _LARGEST_KEPT
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Back to what they were."""
        for owner, name, buffer, then in self._then:
            buffer.copy_(then)
            owner._buffers[name] = buffer  # a forward may have put another tensor in its place
