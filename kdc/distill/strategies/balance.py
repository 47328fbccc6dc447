"""Labels and teacher weighed against each other, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kdc.core.errors import ModelError
from kdc.distill.policy import Policy

Losses = Mapping[Policy, torch.Tensor]


def balanced(losses: Losses, share: torch.Tensor) -> Losses:
    """The teacher's losses times `share` [batch], the labels' times 1 - share; a share may be above 1."""
    return {policy: loss * (1 - share if policy.of_labels else share) for policy, loss in losses.items()}


def summed(losses: Losses, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of the labels' losses and of the teacher's, each [batch].

    Raises: ModelError where there is none of one sort: there is then nothing to weigh.
    """
    sums = []
    for of_labels, name, example in ((True, "labels", "labels"), (False, "the teacher", "kd")):
        parts = [loss for policy, loss in losses.items() if policy.of_labels == of_labels]
        if not parts:
            raise ModelError(
                f"{kind} weighs the losses of labels and teacher against each other, and there is none of {name}",
                do=f"add one to training.objectives, such as {{kind: {example}, weight: 1.0}}",
            )
        sums.append(torch.stack(parts).sum(0))
    return sums[0], sums[1]
