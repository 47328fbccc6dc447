"""How many steps a training takes: those of its settings, or as many as there is time for.

The loop tells how long its steps, its evaluations and its views take; from these follows the step that can be reached in
the time left. Where that is less than the settings ask for, the schedule is fitted at once: the training is shorter, and
its learning rate, which follows the share of the steps that are done, still falls to its end. The step is computed again
while it trains, for a machine's speed changes; no training becomes longer than its settings say.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kdc.core.contract import Context
from kdc.core.writing import make_folder, read_checked, write_checked
from kdc.distill.devices import CPU
from kdc.distill.settings import Training
from kdc.distill.team import Team

SCHEDULE = "schedule.json"  # in the context's work folder, where it is not that of the settings
LOOK_SECONDS = 2.0  # between two looks at the clock; the first one fits the schedule
SPARE = 0.95  # of the time left is planned with
LONGER = 1.15  # times the steps: where the machine was slow at first only
VIEW_SHARE = 0.3  # of the time left, the most that the teacher's answers to a whole view may take


class Fitting:
    """The number of steps of one training. Without a deadline it is that of the settings.

    Args: planned: steps by the settings. per_epoch: steps of one epoch. device: that the training's processes talk on. now:
        seconds by a clock that never goes back.
    """

    def __init__(
        self,
        context: Context,
        training: Training,
        planned: int,
        per_epoch: int,
        team: Team,
        device: torch.device = CPU,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.context, self.planned, self.per_epoch = context, planned, per_epoch
        self.team, self.device, self._now = team, device, now
        fixed = context.data.augment is None and not training.transforms
        self._views = 1 if fixed else training.views
        found = _read(context.work)
        self.steps, self.live = (planned, False) if found is None else found
        self._told = self.steps
        self._step_seconds: float | None = None
        self._evaluation_seconds: float | None = None
        self._evaluation_steps = 0.4 * len(context.data.validation) / training.batch  # a guess: forwards of less memory
        self._view_seconds = 0.0
        self._warm = False
        self._window = 0, 0.0  # the step and the time from which on steps are timed

    @property
    def limited(self) -> bool:
        """Whether there is a deadline."""
        return self.context.deadline is not None

    @property
    def shortened(self) -> bool:
        """Whether the training is not the one of its settings, for want of time."""
        return self.live or self.steps != self.planned

    def begin(self, step: int) -> None:
        """The training starts at this step, or is gone on with: it ends at once where no time is left."""
        self._settle(step if self._left() <= 0 else self.steps, step)

    def ask_live(self, view_seconds: float) -> bool:
        """Whether the teacher is to be asked batch by batch, for its answers to a whole view would take too long.

        Args: view_seconds: what they would take.
        """
        if self.limited and not self.live and self._first(float(view_seconds > VIEW_SHARE * self._left())):
            self.live = True
            self._write()
            self.context.give_up(
                "answers",
                f"the teacher is asked batch by batch: its answers to all training samples would take {view_seconds:.0f} s",
            )
        return self.live

    def seen(self, step: int, seconds: float) -> None:
        """The view of an epoch was made, and answered by the teacher, in so many seconds; its steps begin."""
        self._view_seconds = max(self._view_seconds, seconds)
        self._window = step, self._now()

    def after(self, step: int) -> None:
        """So many steps are done: look at the clock where it is time to."""
        if not self.limited:
            return
        now = self._now()
        if not self._warm:  # the first step of all is not timed: memory is taken, kernels are chosen
            self._warm = True
            self._window = step, now
        elif now - self._window[1] >= LOOK_SECONDS:
            self._close_window(step)
            self._settle(self.reached(step), step)
            return
        self._settle(self.steps if self._left() > 0 else step, step)

    def evaluated(self, step: int, seconds: float) -> None:
        """An epoch has ended, and its evaluation took so long."""
        self._evaluation_seconds = seconds
        self._window = self._window[0], self._window[1] + seconds  # which is no time of its steps
        self._close_window(step)
        self._settle(self.reached(step), step)

    def reached(self, step: int) -> int:
        """The step that can be reached from this one in the time left, each epoch and the end with an evaluation."""
        if self._step_seconds is None or not self.limited:
            return self.steps
        evaluation = self._evaluation_seconds or self._evaluation_steps * self._step_seconds
        left = SPARE * self._left() - 2 * evaluation
        epoch, into = divmod(step, self.per_epoch)
        while step < self.planned and left > 0:
            if into == 0 and epoch < self._views and not self.live:
                left -= self._view_seconds
            wanted = self.per_epoch - into
            possible = min(wanted, int(max(left, 0.0) / self._step_seconds))
            step += possible
            if possible < wanted:
                break
            left -= wanted * self._step_seconds + evaluation
            epoch, into = epoch + 1, 0
        return min(step, self.planned)

    def _left(self) -> float:
        deadline = self.context.deadline
        return math.inf if deadline is None else deadline.left()

    def _close_window(self, step: int) -> None:
        first, began = self._window
        if step > first and self._warm:
            seconds = max((self._now() - began) / (step - first), 1e-9)
            self._step_seconds = seconds if self._step_seconds is None else (self._step_seconds + seconds) / 2
            self._window = step, self._now()

    def _settle(self, total: int, step: int) -> None:
        """The training ends at this step, and never before the one that is done; all its processes hear it of the first."""
        if not self.limited:
            return
        total = int(self._first(float(max(total, step))))
        if total < self.steps or total > LONGER * self.steps or self.steps < total == self.planned:
            self.steps = total
            self._write()
            self._tell(step)

    def _first(self, value: float) -> float:
        """The value in the first process."""
        if self.team.size == 1:
            return value
        told = torch.tensor([value if self.team.rank == 0 else 0.0], dtype=torch.float64, device=self.device)
        self.team.add([told])
        return float(told)

    def _tell(self, step: int) -> None:
        """The report hears every change, the user those that matter."""
        epochs, planned = self.steps / self.per_epoch, self.planned / self.per_epoch
        ended = step >= self.steps
        what = "ended after" if ended else "was fitted to"
        matters = ended or abs(self.steps - self._told) > 0.2 * self._told
        self.context.give_up("schedule", f"the training {what} {epochs:.3g} of {planned:g} epochs", quietly=not matters)
        if matters:
            self._told = self.steps

    def _write(self) -> None:
        make_folder(self.context.work)
        write_checked(self.context.work / SCHEDULE, {"steps": self.steps, "live": self.live})


def steps_of(work: Path, planned: int) -> int:
    """How many steps the training of this work folder takes: as it was fitted, else as it is planned."""
    found = _read(work)
    return planned if found is None else found[0]


def _read(work: Path) -> tuple[int, bool] | None:
    path = work / SCHEDULE
    if not os.path.lexists(path):
        return None
    content = read_checked(path)
    return content["steps"], content["live"]
