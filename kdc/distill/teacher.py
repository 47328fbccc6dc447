"""Outputs of a model over a split, and the teacher's outputs over augmented views, kept on disk.

A cache of teacher outputs is only right when the student sees the very input that the teacher saw. So the training split
is augmented in whole *views*: view v is a fixed function of the seed and v, and the outputs are stored beside it. Epoch e
trains on view e mod `views`. (A cache keyed by the sample alone, under fresh augmentation, pairs one crop's answer with
another crop: "a consistent teacher", Beyer et al. 2022, arXiv:2106.05237, section 3.1, shows what that costs.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from kdc.core.contract import Context, named_seed
from kdc.core.data import Split, Splits
from kdc.core.observe import Progress
from kdc.core.weights import save_weights

EVALUATION_BATCH = 250
VIEW_BLOCK = 512


@torch.no_grad()
def predict(model: nn.Module, split: Split, report: Callable[[int, int], None] | None = None) -> torch.Tensor:
    """The model's outputs over a split, float32 [n, ...], in evaluation mode; the mode is left as it was."""
    training = model.training
    model.eval()
    outputs: list[torch.Tensor] = []
    done = 0
    for batch in split.batches(EVALUATION_BATCH):
        outputs.append(model(*map(fast, batch.inputs)).float())
        done += len(batch)
        if report is not None:
            report(done, len(split))
    model.train(training)
    return torch.cat(outputs)


def fast(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its channels last in memory where it is a batch of maps: convolutions are up to twice as fast."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def points(outputs: torch.Tensor, split: Split, context: Context) -> float:
    """The task's headline metric of these outputs, in points."""
    scores: np.ndarray[Any, Any] = context.task.scores(outputs.numpy(), split.labels.numpy())
    return 100.0 * float(scores.mean())


def view(data: Splits, seed: int, number: int) -> Split:
    """View `number` of the training split: each block of samples augmented with a generator of its own."""
    if data.augment is None:
        return data.train
    images = data.train.inputs[0]
    blocks = [
        data.augment(block, torch.Generator().manual_seed(named_seed(seed, "view", number, i)))
        for i, block in enumerate(torch.split(images, VIEW_BLOCK))
    ]
    return Split((torch.cat(blocks), *data.train.inputs[1:]), data.train.labels)


def teacher_outputs(context: Context, number: int, samples: Split) -> torch.Tensor:
    """The teacher's outputs over view `number`, from the cache or computed and cached."""
    path = context.cache / f"teacher-view-{number}.safetensors"
    if path.exists():
        return load_file(path)["outputs"]
    what = f"teacher's answers, view {number + 1}"
    outputs = predict(
        context.teacher, samples, lambda done, total: context.emit(Progress(what, done, total, "samples"))
    )
    save_weights({"outputs": outputs}, path)
    return outputs
