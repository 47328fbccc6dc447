"""The one training loop: a student follows its teacher under several policies at once.

Every draw is named by the seed, the step and the epoch, so that a run that was killed and went on from its checkpoint
ends with the same bytes as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import torch
from safetensors import safe_open
from torch import nn

from kdc.core.contract import Context, named_seed
from kdc.core.data import Split
from kdc.core.errors import ModelError
from kdc.core.observe import Epoch, Progress
from kdc.core.weights import save_weights
from kdc.distill.policies import Batch, Policy, policies
from kdc.distill.settings import Training
from kdc.distill.teacher import fast, points, predict, teacher_outputs, view

PROGRESS_SECONDS = 0.5


def train(
    student: nn.Module,
    context: Context,
    training: Training,
    extra: Sequence[Policy] = (),
    frozen: Sequence[nn.Module] = (),
) -> nn.Module:
    """Train the student in place; it comes back in evaluation mode with the averaged weights.

    Args: student: takes the same inputs as `context.teacher`. extra: policies of a pass's own, beside the recipe's.
    frozen: modules of the student that stay as they are to the bit: no gradients, evaluation mode.
    Raises: ModelError where the loss is no longer finite.
    """
    if training.epochs == 0:
        return student.eval()
    composed = [*policies(training.objectives, student, context), *extra]
    try:
        return _Loop(student, context, training, composed, frozen).run()
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
        frozen: Sequence[nn.Module],
    ) -> None:
        self.student, self.context, self.training, self.policies = student, context, training, composed
        self.frozen = frozen
        student.requires_grad_(True)  # the teacher it may have been cut from does not train
        for module in frozen:
            module.requires_grad_(False)
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = nn.ModuleList([student, *(p.trained for p in composed if p.trained is not None)])
        self.live_teacher = any(policy.runs_teacher for policy in composed)
        self.average = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
        # The mean of equal numbers need not be the number to the bit: that of -0.0 is 0.0.
        still = {id(tensor) for module in frozen for tensor in module.state_dict(keep_vars=True).values()}
        state = student.state_dict(keep_vars=True)
        self.moving = [name for name, tensor in state.items() if id(tensor) not in still]
        self.optimizer = torch.optim.AdamW(_groups(self.trained, training.weight_decay), lr=training.learning_rate)
        samples = len(context.data.train)
        self.batch = min(training.batch, samples)
        self.steps_per_epoch = samples // self.batch  # a last smaller batch would give BatchNorm another noise
        self.steps = training.epochs * self.steps_per_epoch
        self.step = 0
        self.checkpoint = context.work / "training.safetensors"

    def run(self) -> nn.Module:
        self._load()
        saved = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            while self.step < self.steps:
                epoch = self.step // self.steps_per_epoch
                began, losses = time.monotonic(), 0.0
                first = self.step % self.steps_per_epoch
                for inputs, labels, answers in self._batches(epoch, first):
                    losses += self._train_on(inputs, labels, answers)
                    self.step += 1
                    now = time.monotonic()
                    if now - saved > self.training.checkpoint_seconds:
                        self._save()
                        saved = now
                self._report(epoch, losses / (self.steps_per_epoch - first), time.monotonic() - began)
        self._save()
        self.student.load_state_dict(self.average)
        return self.student.eval()

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]]:
        """The epoch's batches from number `first` on, with the teacher's outputs where they are stored."""
        number = epoch % self.training.views
        samples: Split = view(self.context.data, self.context.seed, number)
        answers = None
        if not self.live_teacher:
            answers = teacher_outputs(self.context, number if self.context.data.augment else 0, samples)
        order = torch.randperm(len(samples), generator=self.context.generator(f"order.{epoch}"))
        shown = 0.0
        for i in range(first, self.steps_per_epoch):
            index = order[i * self.batch : (i + 1) * self.batch]
            batch = samples[index]
            inputs = tuple(map(fast, batch.inputs))
            if answers is not None:
                teacher = answers[index]
            else:
                with torch.no_grad():
                    teacher = self.context.teacher(*inputs).float()
            yield inputs, batch.labels, teacher
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                self.context.emit(Progress(f"{self.context.step}: training", self.step, self.steps))

    def _train_on(self, inputs: tuple[torch.Tensor, ...], labels: torch.Tensor, teacher: torch.Tensor) -> float:
        torch.manual_seed(named_seed(self.context.seed, self.context.step, "dropout", self.step))
        self.student.train()
        for module in self.frozen:
            module.eval()
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate * _schedule(self.step / self.steps, self.training.warmup)
        batch = Batch(labels, self.student(*inputs), teacher)
        parts = [policy.loss(batch) for policy in self.policies]
        loss = torch.stack(parts).sum(0).mean()
        if not torch.isfinite(loss):
            raise ModelError(
                f"{self.context.step}: the loss is {loss.item()} at step {self.step} of {self.steps}",
                do=f"set a lower training.learning_rate than {self.training.learning_rate:g}",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained.parameters(), self.training.clip_norm)
        self.optimizer.step()
        self._average()
        return loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        # The decay grows with the steps, else the average of a short training is still its first weights.
        decay = min(self.training.ema, (1 + self.step) / (10 + self.step))
        state = self.student.state_dict()
        for name in self.moving:
            tensor = state[name]
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    def _report(self, epoch: int, loss: float, seconds: float) -> None:
        live = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        self.student.load_state_dict(self.average)
        split = self.context.data.validation
        metric = points(predict(self.student, split), split, self.context)
        self.student.load_state_dict(live)
        self.context.emit(Epoch(epoch + 1, self.training.epochs, loss, metric, seconds))

    def _save(self) -> None:
        tensors = {f"trained/{name}": tensor for name, tensor in self.trained.state_dict().items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
        save_weights(tensors, self.checkpoint, {"step": str(self.step)})

    def _load(self) -> None:
        if not self.checkpoint.exists():
            return
        state = self.optimizer.state_dict()
        trained: dict[str, torch.Tensor] = {}
        with safe_open(self.checkpoint, "pt") as file:
            self.step = int(file.metadata()["step"])
            for key in file.keys():  # noqa: SIM118 - the file is no mapping
                part, name = key.split("/", 1)
                if part == "trained":
                    trained[name] = file.get_tensor(key)
                elif part == "average":
                    self.average[name] = file.get_tensor(key)
                else:
                    index, field = name.split("/")
                    state["state"].setdefault(int(index), {})[field] = file.get_tensor(key)
        self.trained.load_state_dict(trained)
        self.optimizer.load_state_dict(state)


def _schedule(progress: float, warmup: float) -> float:
    """The learning rate's share of its peak at this share of the steps."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with weight decay, and those of one dimension (biases, norms, scales) without."""
    wide = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    narrow = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    return [{"params": wide, "weight_decay": weight_decay}, {"params": narrow, "weight_decay": 0.0}]
