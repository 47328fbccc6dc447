"""A model in stages that answers as early as it is sure: the value that conditional computation makes of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Cascade(nn.Module):
    """Stages in a row, with an exit behind each but the last.

    The first stage takes the model's inputs; every other takes the one tensor that the stage before it gives; the last
    gives logits. Exit i turns what stage i gives into logits of its own. An input whose confidence there (the largest
    softmax probability) is at least `thresholds[i]` takes these, and the stages behind are not its affair. A threshold
    of 0 sends every input out, one above 1 none.

    Here, where whole batches train and are compared, all stages run and each sample picks its answer; the exported forms
    really skip.
    """

    def __init__(self, stages: Sequence[nn.Module], exits: Sequence[nn.Module], thresholds: Sequence[float]) -> None:
        super().__init__()
        if not len(stages) == len(exits) + 1 == len(thresholds) + 1:
            raise ValueError(f"{len(stages)} stages, {len(exits)} exits and {len(thresholds)} thresholds")
        self.stages = nn.ModuleList(stages)
        self.exits = nn.ModuleList(exits)
        self.thresholds = tuple(float(threshold) for threshold in thresholds)

    def answers(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """The logits [batch, classes] of every exit, then of the last stage."""
        features: tuple[torch.Tensor, ...] = inputs
        logits: list[torch.Tensor] = []
        for stage, exit_ in zip(self.stages, self.exits, strict=False):
            features = (stage(*features),)
            logits.append(exit_(*features))
        logits.append(self.stages[-1](*features))
        return logits

    def route(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits [batch, classes] that each sample takes, and at which exit [batch] (int64, 0 is the first)."""
        *early, chosen = self.answers(*inputs)
        taken = torch.full((len(chosen),), len(early), dtype=torch.int64, device=chosen.device)
        for place in reversed(range(len(early))):
            sure = confidence(early[place]) >= self.thresholds[place]
            chosen = torch.where(sure.unsqueeze(1), early[place], chosen)
            taken = torch.where(sure, torch.full_like(taken, place), taken)
        return chosen, taken

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The logits [batch, classes] that each sample takes."""
        return self.route(*inputs)[0]

    def extra_repr(self) -> str:
        """The thresholds decide what the model computes, so they are part of what it is."""
        return f"thresholds={self.thresholds}"


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """The largest softmax probability: logits [batch, classes] -> [batch]."""
    return torch.softmax(logits, 1).amax(1)
