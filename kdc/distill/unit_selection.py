"""As many of the teacher's units as the student has, chosen by what the task asks of them: no projector in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdc.core.contract import Task
from kdc.core.data import Split
from kdc.distill.alignment import Layer
from kdc.distill.feature_policy import Features
from kdc.distill.feature_settings import Paired, TaskUnits
from kdc.distill.feature_terms import Term
from kdc.distill.objectives.features import hint
from kdc.distill.pairing import Pair

_BATCH = 64


class SelectedUnits(Features):
    """The student's features match the teacher's most task-relevant channels, in the order in which these stand.

    Where the student is the wider one, its first channels match all of the teacher's and the rest are free.
    Source: Saadi and Wang 2025, "Task-Based Flexible Feature Distillation", arXiv:2507.10155, as in the abstract (the
    most relevant units are distilled directly, without new parameters); the relevance (`task_relevance`), `hint` as the
    distance and that channels keep their order are ours.
    """

    def _terms(self, settings: Paired, found: list[Pair]) -> list[nn.Module]:
        assert isinstance(settings, TaskUnits)
        train = self.context.data.train
        order = torch.randperm(len(train), generator=self.context.generator(f"{self.kind}.examples"))
        examples = train[order[: settings.samples].sort().values]
        terms: list[nn.Module] = []
        for pair in found:
            count = min(pair.student.channels, pair.teacher.channels)
            relevance = task_relevance(self.context.teacher, pair.teacher, examples, self.context.task)
            units = relevance.topk(count).indices.sort().values
            terms.append(Term(hint, _Channels(torch.arange(count)), _Channels(units)))
        return terms


def task_relevance(model: nn.Module, layer: Layer, examples: Split, task: Task) -> torch.Tensor:
    """Mean over examples and positions of |activation * gradient of the task's loss|, [channels].

    It is, to first order, how much the loss changes where the unit falls silent. Evaluation mode; the model is left as it
    was.
    """
    kept: list[torch.Tensor] = []

    def cut(module: Any, inputs: Any, output: Any) -> Any:
        feature = output[0] if isinstance(output, tuple | list) else output
        leaf = feature.detach().requires_grad_()
        kept.append(leaf)
        onward = leaf.clone()  # what follows may work in place
        return (onward, *output[1:]) if isinstance(output, tuple | list) else onward

    modes = {module: module.training for module in model.modules()}
    model.eval()
    handle = model.get_submodule(layer.path).register_forward_hook(cut)
    total = torch.zeros(layer.channels)
    try:
        with torch.enable_grad():
            for batch in examples.batches(_BATCH):
                kept.clear()
                loss = task.loss(model(*batch.inputs).float(), batch.labels).sum()
                (gradient,) = torch.autograd.grad(loss, kept[-1])
                size = layer.channels_first((kept[-1].detach() * gradient).abs().float())
                total += size.flatten(2).mean(2).sum(0).cpu()
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return total / len(examples)


class _Channels(nn.Module):
    """Some of a feature's channels."""

    def __init__(self, index: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """[batch, channels, ...] -> [batch, chosen, ...]."""
        return feature.index_select(1, self.get_buffer("index").to(feature.device))
