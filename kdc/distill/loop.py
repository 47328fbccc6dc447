"""The one training loop: a student follows its teacher under several policies at once.

Every draw is named by the seed, the step and the epoch, so that a run that was killed and went on from its checkpoint
ends with the same bytes as one that was not. Only a deadline makes a training depend on the clock (`fitting.py`): one that
was made shorter gives the best state that it had on the validation split, as one with `keep: best` does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.errors import LawError, ModelError
from kdc.core.observe import Epoch
from kdc.core.weights import load_checkpoint, save_checkpoint
from kdc.distill.answers import Answers
from kdc.distill.averaging import Average, Best
from kdc.distill.batch_step import BatchStep
from kdc.distill.calibration import calibrate
from kdc.distill.devices import CPU, device_of, placed
from kdc.distill.drawing import Drawing, Views
from kdc.distill.fitting import Fitting, steps_of
from kdc.distill.launching import gathered
from kdc.distill.memory_layout import settle_layout
from kdc.distill.policies import policies
from kdc.distill.policy import Drawn, Policy
from kdc.distill.predict_only import asked_only
from kdc.distill.settings import Training
from kdc.distill.sources import taught
from kdc.distill.teacher import reached
from kdc.distill.teacher_answers import TeacherAnswers, reading
from kdc.distill.team import Team
from kdc.distill.views import View

CHECKPOINT = "training.safetensors"  # in the context's work folder
_FEW = 2  # samples that show whether a memory layout works


def train(
    student: nn.Module,
    context: Context,
    training: Training,
    extra: Sequence[Policy] = (),
    frozen: Sequence[nn.Module] = (),
) -> nn.Module:
    """Train the student in place; it comes back on the CPU, in evaluation mode, with the averaged weights, calibrated.

    Args: student: takes the same inputs as the teachers of `training`. extra: policies of a pass's own, beside the recipe's.
    frozen: modules of the student that stay as they are to the bit: no gradients, evaluation mode.
    Raises: ModelError where a part of the loss is no longer finite, where not one sample fits into memory, and where the
        devices or processes that the settings ask for are not to be had; the last checkpoint is kept. LawError where
        another process, going on with this step to share its training, does not come to the same.
    """
    if training.epochs == 0:
        return student.eval()
    context = taught(context, training.teachers)
    settle_layout(student, context.data.calibration[:_FEW].inputs)
    with gathered(context, training, _ended(context, training)) as team:
        _teach(student, context, training, extra, frozen, team)
    calibrate(student, context, training, frozen)
    return student


def _ended(context: Context, training: Training) -> bool:
    """Whether the last checkpoint is that of the last step."""
    kept = load_checkpoint(context.work / CHECKPOINT)
    steps = steps_of(context.work, Drawing(context, training, CPU).steps)
    return kept is not None and int(kept[1]["step"]) >= steps


def _teach(
    student: nn.Module,
    context: Context,
    training: Training,
    extra: Sequence[Policy],
    frozen: Sequence[nn.Module],
    team: Team,
) -> None:
    """What each process of a training does; see `train`."""
    if not team.begins_alike(student):
        raise LawError(
            f"{context.step}: the processes of the training come to different students: the step does not do the same "
            "again from its work folder"
        )
    composed = [*policies((*training.strategies, *training.objectives), student, context), *extra]
    try:
        device = device_of(training, team.rank)
        beside = [policy.trained for policy in composed if policy.trained is not None]
        with placed([student, context.teacher, *beside], device):
            _Loop(student, context, training, composed, extra, frozen, team, device).run()
    finally:
        for policy in composed:
            policy.close()


class _Loop:
    """What a training carries from step to step; all of it is in a checkpoint."""

    def __init__(
        self,
        student: nn.Module,
        context: Context,
        training: Training,
        composed: list[Policy],
        extra: Sequence[Policy],
        frozen: Sequence[nn.Module],
        team: Team,
        device: torch.device,
    ) -> None:
        self.student, self.context, self.training, self.policies = student, context, training, composed
        self.team, self.device = team, device
        student.requires_grad_(True)  # the teacher it may have been cut from does not train
        for module in frozen:
            module.requires_grad_(False)
        self.trained = nn.ModuleList([student, *(p.trained for p in composed if p.trained is not None)])
        self.answers = TeacherAnswers(context, None, *reading(training.answers, composed))
        self.average = Average(student, frozen, training.ema)
        self.drawing = Drawing(context, training, device)
        self.batch_step = BatchStep(student, context, training, composed, frozen, self.trained, team, device)
        self.step = 0
        self.checkpoint = context.work / CHECKPOINT
        planned, per_epoch = self.drawing.steps, self.drawing.steps_per_epoch
        self.fitting = Fitting(context, training, planned, per_epoch, team, device)
        # What a pass trains beside the student (exits) is not in the metric: then the last state is the best.
        wanted = training.keep == "best" or context.deadline is not None
        self.best = Best() if wanted and not extra else None

    def run(self) -> None:
        self._load()
        self.fitting.begin(self.step)
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus), Views(self.context, self.training) as views, self.answers:
            if self.step < self.fitting.steps:
                self._begin(views)
                self._go_on(views)
        self._save()
        chosen = self.training.keep == "best" or self.fitting.shortened
        best = self.best.state if self.best is not None and chosen else None
        self.student.load_state_dict(self.average.state if best is None else best)
        self.student.eval()

    def _begin(self, views: Views) -> None:
        for policy in self.policies:
            policy.start(self.training, self._answers_to)
        self._ask_beforehand(views)
        if self.training.compile:
            self.batch_step.compile()

    def _go_on(self, views: Views) -> None:
        """Epoch by epoch to the end."""
        saved, per_epoch = time.monotonic(), self.drawing.steps_per_epoch
        while self.step < self.fitting.steps:
            epoch, first = divmod(self.step, per_epoch)
            began, losses = time.monotonic(), 0.0
            if first == 0:
                for policy in self.policies:
                    policy.begin(epoch)
            seen = views.of(epoch)
            self._choose_how_to_ask(seen)
            stored = self._stored(seen)
            self.fitting.seen(self.step, time.monotonic() - began)
            self.drawing.steps = self.fitting.steps
            for drawn in self.drawing.batches(self.step, seen, stored):
                losses += self._train_on(drawn)
                self.step += 1
                now = time.monotonic()
                if now - saved > self.training.checkpoint_seconds:
                    self._save()
                    saved = now
                self.fitting.after(self.step)
                self.drawing.steps = self.fitting.steps
                if self.step >= self.fitting.steps:
                    break
            evaluating = time.monotonic()
            self._report(epoch, losses / (self.step - epoch * per_epoch - first), evaluating - began)
            self.fitting.evaluated(self.step, time.monotonic() - evaluating)

    def _ask_beforehand(self, views: Views) -> None:
        """A teacher that can only be asked is asked everything now: its budget may not suffice, or its size not fit."""
        if not asked_only(self.context.teacher) or not self.batch_step.reads_stored:
            return
        numbers = sorted({epoch % self.training.views for epoch in range(self.training.epochs)})
        with self.team.first_goes_first():
            self.answers.prepare([partial(views.make, number) for number in numbers])

    def _choose_how_to_ask(self, seen: View) -> None:
        """Where time is limited, the teacher's answers to a whole view may take more than there is."""
        stored = self.batch_step.reads_stored and not asked_only(self.context.teacher)
        if stored and self.fitting.limited and self.fitting.ask_live(self.answers.foretold(seen)):
            self.batch_step.reads_stored = False

    def _stored(self, seen: View) -> Answers | None:
        """The teacher's outputs on a view, where nobody needs more of the teacher than those."""
        return self._answers_to(seen) if self.batch_step.reads_stored else None

    def _answers_to(self, seen: View) -> Answers:
        with self.team.first_goes_first():  # the others read what it wrote
            return self.answers.of(seen)

    def _train_on(self, drawn: Drawn) -> float:
        loss, batch = self.batch_step.take(drawn)
        self.average.update(self.step)
        for policy in self.policies:
            policy.after(batch)
        self.team.align(self.trained)
        return float(loss)

    def _report(self, epoch: int, loss: float, seconds: float) -> None:
        if not self.team.alike(self.trained):
            raise ModelError(
                f"{self.context.step}: the processes no longer train the same student: a policy trains parts of its own "
                "outside the loop's gradients",
                do="set training.processes: 1",
            )
        if self.team.rank > 0:
            return
        live = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        self.student.load_state_dict(self.average.state)
        metric = reached(self.student, self.context)
        self.student.load_state_dict(live)
        if self.best is not None:
            self.best.take(metric, self.average.state)
        epochs = -(-self.fitting.steps // self.drawing.steps_per_epoch)
        self.context.emit(Epoch(epoch + 1, epochs, loss, metric, seconds))

    def _save(self) -> None:
        if self.team.rank > 0:
            return
        tensors = {f"trained/{name}": tensor for name, tensor in self.trained.state_dict().items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.state.items()}
        tensors |= {f"stepper/{name}": tensor for name, tensor in self.batch_step.stepper.state()}
        told = {"step": str(self.step), "accumulate": str(self.batch_step.accumulate)}
        if self.best is not None and self.best.state is not None:
            tensors |= {f"best/{name}": tensor for name, tensor in self.best.state.items()}
            told["best"] = repr(self.best.metric)
        save_checkpoint(tensors, self.checkpoint, told)

    def _load(self) -> None:
        kept = load_checkpoint(self.checkpoint)
        if kept is None:
            return
        tensors: dict[str, dict[str, torch.Tensor]] = {"trained": {}, "average": {}, "stepper": {}, "best": {}}
        told = kept[1]
        self.step, self.batch_step.accumulate = int(told["step"]), int(told["accumulate"])
        for key, tensor in kept[0].items():
            part, name = key.split("/", 1)
            tensors[part][name] = tensor
        self.trained.load_state_dict(tensors["trained"])
        self.average.load(tensors["average"])
        self.batch_step.stepper.load(tensors["stepper"])
        if self.best is not None and "best" in told:
            self.best.take(float(told["best"]), tensors["best"])
