"""How gradients become a step: the optimizer, its rate over the training, and the bound of the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from kdc.distill.optimizers import DistillationOriented, optimizer
from kdc.distill.settings import Training

_SCALE = "loss/scale"


class Stepper:
    """The optimizer over everything that is trained; its state is in the loop's checkpoints.

    Losses become gradients in `gather` alone, once for each part of a batch, and gradients a step in `move` alone. In
    between, processes `exchange` what they gathered.
    """

    def __init__(self, trained: nn.Module, training: Training, device: torch.device | None = None) -> None:
        self.trained, self.training = trained, training
        groups = _groups(trained, training.weight_decay)
        self.optimizer = optimizer(training.optimizer, groups, training.learning_rate)
        kind = "cpu" if device is None else device.type
        self.scaler = torch.amp.GradScaler(kind, enabled=training.precision == "16-mixed")

    def clear(self) -> None:
        """A step begins: there is no gradient yet."""
        self.optimizer.zero_grad(set_to_none=True)

    def gather(self, of_labels: torch.Tensor | None, of_teacher: torch.Tensor | None) -> None:
        """Add the gradients of one part of the batch; the parts' losses add up to the batch's mean."""
        losses = [loss for loss in (of_labels, of_teacher) if loss is not None]
        if isinstance(self.optimizer, DistillationOriented):
            self.optimizer.tell_apart(of_labels, of_teacher)
        self.scaler.scale(torch.stack(losses).sum()).backward()  # type: ignore[no-untyped-call]

    def exchange(self, add: Callable[[list[torch.Tensor]], None]) -> None:
        """What was gathered, added up over the processes. add: changes the tensors in place, the same in each process."""
        every = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        # Who has no gradient in any process must not have one of zeros: weight decay would move it.
        known = torch.tensor([float(p.grad is not None) for p in every], device=every[0].device)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
        add([known, *found])
        for parameter, gradient, count in zip(every, found, known.tolist(), strict=True):
            parameter.grad = gradient if count else None

    def move(self, progress: float) -> None:
        """The step down the gathered gradients; with a scaled loss none where they are not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate * schedule(progress, self.training.warmup)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained.parameters(), self.training.clip_norm)
        if isinstance(self.optimizer, DistillationOriented):
            self.optimizer.scale((self.training.clip_norm / (norm + 1e-6)).clamp_max(1))  # as clip_grad_norm_ does
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What it remembers, by name."""
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                yield f"{index}/{name}", torch.as_tensor(value)
        if self.scaler.is_enabled():
            scale = self.scaler.state_dict()
            yield _SCALE, torch.tensor([scale["scale"], scale["_growth_tracker"]], dtype=torch.float64)

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on with what `state` gave."""
        state = self.optimizer.state_dict()
        for key, tensor in tensors.items():
            if key == _SCALE:
                scale, tracker = tensor.tolist()
                known = self.scaler.state_dict()
                self.scaler.load_state_dict({**known, "scale": scale, "_growth_tracker": int(tracker)})
                continue
            index, name = key.split("/")
            state["state"].setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict(state)


def schedule(progress: float, warmup: float) -> float:
    """The learning rate's share of its peak at this share of the steps."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with weight decay, and those of one dimension (biases, norms, scales) without."""
    wide = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    narrow = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    return [{"params": wide, "weight_decay": weight_decay}, {"params": narrow, "weight_decay": 0.0}]
