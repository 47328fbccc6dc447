"""What a part of a training is: it may change a batch, add to the loss, weigh what others add, and learn from the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from kdc.distill.settings import Training
from kdc.distill.views import View


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One step's samples, before the student has seen them.

    `index` are their numbers in the training split, [batch]; those of the unlabeled split are counted on from its end.
    `number` is the step, `view` the number of the view that they are of. `teacher`: the teacher's outputs on
    these very inputs, None where it is still to be asked. A label below 0 is none: the sample is unlabelled. A mixed
    sample has `share` [batch] of its own label and the rest of the one in `others` [batch]. `part`: which part of the step's
    batch this is, None for the whole of it.
    """

    number: int
    index: torch.Tensor
    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    teacher: torch.Tensor | None
    progress: float = 0.0  # how much of the training is over, 0 to 1
    view: int = 0
    others: torch.Tensor | None = None
    share: torch.Tensor | None = None
    part: int | None = None

    @property
    def name(self) -> str:
        """Names the draws of this step, and of this part of it."""
        return f"{self.number}" if self.part is None else f"{self.number}.{self.part}"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's labels and outputs, each [batch, ...]; see `Drawn` for the rest. `name` is that of what was drawn."""

    number: int = 0
    index: torch.Tensor
    inputs: tuple[torch.Tensor, ...] = ()
    labels: torch.Tensor
    student: torch.Tensor
    teacher: torch.Tensor
    progress: float = 0.0
    others: torch.Tensor | None = None
    share: torch.Tensor | None = None
    name: str = ""


class Rows(Protocol):
    """The teacher's answers to a view."""

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Those to the samples of these numbers, [len(index), ...]."""


Asked = Callable[[View], Rows]


class Policy:
    """One part of a training. What it does not override does nothing.

    A part that remembers anything from step to step keeps it in `trained` (parameters or buffers), which is in the
    loop's checkpoints: a training that was killed then goes on to the same bytes. A batch may be seen in parts, one after
    another or each in a process of its own (`training.accumulate`, `training.processes`): `change`, `loss` and `weigh` see a
    part, `after` what this process saw of the step, joined. Of several processes, the first's buffers count.
    """

    kind = ""  # as the recipe calls it
    runs_teacher = False  # it needs the teacher's own forward on the batch, not only its stored outputs
    reads_teacher = True  # False: the teacher need not be asked for it
    linear_at: float | None = None
    """The temperature at which its loss is linear in the teacher's probabilities, but for what no student changes."""
    undivided = False  # what it keeps from `change` of a batch it needs in `after`: no step can be cut into parts
    of_labels = False  # its loss is of the labels, not of the teacher
    trained: nn.Module | None = None  # what is trained beside the student and thrown away after

    def start(self, training: Training, asked: Asked) -> None:
        """The training, as its settings say it, starts or is gone on with after a kill.

        Args: asked: the teacher's answers to a view, kept as those to the training split are.
        """

    def begin(self, epoch: int) -> None:
        """An epoch begins, or is gone on with after a kill."""

    def change(self, drawn: Drawn) -> Drawn:
        """The batch as it will be trained on. Who changes the inputs gives teacher=None, and sets `runs_teacher`."""
        return drawn

    def loss(self, batch: Batch) -> torch.Tensor | None:
        """[batch], weighted; None for a part that has no loss."""
        return None

    def weigh(self, batch: Batch, losses: Mapping[Policy, torch.Tensor]) -> Mapping[Policy, torch.Tensor]:
        """All parts' losses, each [batch], as they should count."""
        return losses

    def after(self, batch: Batch) -> None:
        """The step is done: student and `trained` have moved."""

    def close(self) -> None:
        """Leave both models as they were found."""
