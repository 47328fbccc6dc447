"""One step of a training: a batch in as many parts as memory and processes ask for, and the gradient of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from kdc.core.contract import Context, named_seed
from kdc.core.errors import ModelError
from kdc.core.observe import Note
from kdc.distill.forward import Forward
from kdc.distill.parts import Remembered, cut, joined, out_of_memory, parts
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.settings import Training
from kdc.distill.stepping import Stepper
from kdc.distill.team import Outcome, Team, lost


class BatchStep:
    """What a process does at each step: its share of the batch forwards and backwards, then the optimizer's step."""

    def __init__(
        self,
        student: nn.Module,
        context: Context,
        training: Training,
        composed: Sequence[Policy],
        frozen: Sequence[nn.Module],
        trained: nn.Module,
        team: Team,
        device: torch.device,
    ) -> None:
        self.student, self.context, self.training, self.policies = student, context, training, composed
        self.frozen, self.trained, self.team, self.device = frozen, trained, team, device
        self.silent_teacher = not any(policy.reads_teacher for policy in composed)
        self.reads_stored = not self.silent_teacher and not any(policy.runs_teacher for policy in composed)
        self.undivided = [policy.kind or type(policy).__name__ for policy in composed if policy.undivided]
        self.stepper = Stepper(trained, training, device)
        self.forward = Forward(student, training, device)
        self.accumulate = training.accumulate  # parts of this process's share of a batch
        self.batch = min(training.batch, len(context.data.train))
        self.steps = training.epochs * (len(context.data.train) // self.batch)
        if team.size * self.accumulate > self.batch:
            raise ModelError(
                f"{context.step}: a batch of {self.batch} cannot be seen in {team.size * self.accumulate} parts "
                f"(training.processes {team.size} times training.accumulate {self.accumulate})",
                do="set a larger training.batch, or fewer parts",
            )
        if self.accumulate > 1 and self.undivided:
            raise ModelError(
                f"{context.step}: {', '.join(self.undivided)} must see a batch at once; found training.accumulate "
                f"{self.accumulate}",
                do="set training.accumulate: 1 and a smaller training.batch, or leave it out",
            )

    def compile(self) -> None:
        """Compile the student's forward, for parts of their size now."""
        samples = self.context.data.train[: self.batch // (self.team.size * self.accumulate)]
        self.forward.compile(tuple(tensor.to(self.device) for tensor in samples.inputs), self.context.emit)

    def take(self, drawn: Drawn) -> tuple[torch.Tensor, Batch]:
        """Gather the batch's gradient and step: the mean loss, and what this process saw.

        A batch that does not fit into memory is seen in twice as many parts, from this very step on. Nothing but buffers
        has moved until then, and they are put back.
        """
        while True:
            before = Remembered(self.trained)
            failed: Exception | None = None
            try:
                loss, batch = self._attempt(drawn)
            except Exception as error:
                if self.team.size == 1 and not out_of_memory(error):
                    raise
                failed = error
            outcome = self.team.worst(_outcome(failed))
            if outcome == Outcome.DONE:
                break
            if outcome == Outcome.FAILED:
                raise failed if failed is not None else lost()
            before.restore()
            self._take_smaller_parts(drawn.number, failed)
        if self.team.size > 1:
            self.stepper.exchange(self.team.add)
        try:
            self.stepper.move(drawn.progress)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise ModelError(  # some weights may have moved: it cannot be done again
                f"{self.context.step}: out of memory for the optimizer, at step {drawn.number} of {self.steps}; the last "
                "checkpoint is kept",
                do="use a smaller student, or a machine with more memory: a smaller batch does not help here",
            ) from error
        return loss, batch

    def _attempt(self, drawn: Drawn) -> tuple[torch.Tensor, Batch]:
        """Gather the gradients of this process's share of the batch: its loss, and what was seen."""
        count = len(drawn.index)
        every = self.team.size * self.accumulate
        self.stepper.clear()
        total = torch.zeros((), device=self.device)
        batches: list[Batch] = []
        own = range(self.team.rank * self.accumulate, (self.team.rank + 1) * self.accumulate)
        cuts = parts(count, every)
        for number in own:
            # The draws of a part are its own, whichever process sees it.
            part = drawn if every == 1 else cut(drawn, cuts[number], number)
            torch.manual_seed(named_seed(self.context.seed, self.context.step, "dropout", part.name))
            of_labels, of_teacher, batch = self._losses(part)
            if every > 1:
                share = len(part.index) / count
                of_labels, of_teacher = (None if loss is None else share * loss for loss in (of_labels, of_teacher))
            self.stepper.gather(of_labels, of_teacher)
            for loss in (of_labels, of_teacher):
                if loss is not None:
                    total += self.team.size * loss.detach()
            batches.append(batch if every == 1 else replace(batch, student=batch.student.detach()))
        return total, joined(batches)

    def _losses(self, drawn: Drawn) -> tuple[torch.Tensor | None, torch.Tensor | None, Batch]:
        """The mean losses of labels and of the teacher on these samples, weighed by all policies."""
        self.student.train()
        for module in self.frozen:
            module.eval()
        for policy in self.policies:
            drawn = policy.change(drawn)
        batch = Batch(
            number=drawn.number,
            name=drawn.name,
            index=drawn.index,
            inputs=drawn.inputs,
            labels=drawn.labels,
            student=self.forward(*drawn.inputs),
            teacher=self._asked(drawn),
            progress=drawn.progress,
            others=drawn.others,
            share=drawn.share,
        )
        losses: Mapping[Policy, torch.Tensor] = {
            policy: loss for policy in self.policies if (loss := policy.loss(batch)) is not None
        }
        self._refuse_broken(losses, batch)
        for policy in self.policies:
            losses = policy.weigh(batch, losses)
        of_labels = _mean(loss for policy, loss in losses.items() if policy.of_labels)
        of_teacher = _mean(loss for policy, loss in losses.items() if not policy.of_labels)
        return of_labels, of_teacher, batch

    @property
    def _wider(self) -> str:
        return ", or training.precision: bf16-mixed" if self.training.precision == "16-mixed" else ""

    @torch.no_grad()
    def _asked(self, drawn: Drawn) -> torch.Tensor:
        """The teacher's outputs for these inputs: stored, or asked for now."""
        if drawn.teacher is not None:
            return drawn.teacher
        if self.silent_teacher:
            return torch.empty(0, device=self.device)  # nobody reads it
        outputs: torch.Tensor = self.context.teacher(*drawn.inputs).float()
        return outputs

    def _take_smaller_parts(self, step: int, failed: Exception | None) -> None:
        share = self.batch // self.team.size
        size = -(-share // self.accumulate)
        if self.undivided:
            raise ModelError(
                f"{self.context.step}: out of memory at step {step} of {self.steps} with {size} samples at once, and "
                f"{', '.join(self.undivided)} must see them at once; the last checkpoint is kept",
                do="set a smaller training.batch, or leave it out",
            ) from failed
        if size == 1:
            raise ModelError(
                f"{self.context.step}: out of memory at step {step} of {self.steps}, with one sample at a "
                f"time; the last checkpoint is kept",
                do="use a smaller student or smaller inputs, leave out an objective on features, or use a machine with "
                "more memory",
            ) from failed
        self.accumulate = min(2 * self.accumulate, share)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.context.emit(
            Note(
                f"{self.context.step}: out of memory at step {step} with {size} samples at once; from this step on "
                f"they are {-(-share // self.accumulate)} at a time, in {self.accumulate} parts whose gradients add up "
                "(BatchNorm, and objectives that look across the batch, see a part alone)"
            )
        )

    def _refuse_broken(self, losses: Mapping[Policy, torch.Tensor], batch: Batch) -> None:
        if torch.isfinite(torch.stack([values.detach().sum() for values in losses.values()]).sum()):
            return  # one look at all of them, for each look waits for the device
        for policy, values in losses.items():
            bad = ~torch.isfinite(values.detach())
            if bad.any():
                sample = int(batch.index[int(bad.nonzero()[0])])
                raise ModelError(
                    f"{self.context.step}: the loss of {policy.kind or type(policy).__name__} is "
                    f"{values[bad][0].item()} at step {batch.number} of {self.steps}, for {int(bad.sum())} of "
                    f"{len(bad)} samples of the batch, the first number {sample} of the training split; the last "
                    "checkpoint is kept",
                    do=f"set a lower training.learning_rate than {self.training.learning_rate:g}, or a lower weight of "
                    f"this term{self._wider}",
                )


def _outcome(failed: Exception | None) -> Outcome:
    if failed is None:
        return Outcome.DONE
    return Outcome.OUT_OF_MEMORY if out_of_memory(failed) else Outcome.FAILED


def _mean(losses: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """The sum of losses, each [batch], in the mean over the batch; None of none."""
    every = list(losses)
    return torch.stack(every).sum(0).mean() if every else None
