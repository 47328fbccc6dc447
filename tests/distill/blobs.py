"""Three classes of points that can be learned in a second, models for them, and a training that is killed on the way."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.distill.loop import train
from kdc.distill.settings import Training

CENTRES = 2.0 * torch.eye(3, 6)


def split(n: int, seed: int, noise: float = 0.7) -> Split:
    """Points [n, 6] around three centres."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return Split((CENTRES[labels] + noise * torch.randn((n, 6), generator=generator),), labels)


def with_blobs(context: Context, teacher: nn.Module, noise: float = 0.7) -> Context:
    """The context with these data and this teacher."""
    parts = split(192, 1, noise), split(48, 2, noise), split(96, 3, noise), split(96, 4, noise)
    return dataclasses.replace(context, data=Splits(*parts, "blobs", augment=None), teacher=teacher)


class Good(nn.Module):
    """Knows the centres."""

    def __init__(self, sharpness: float = 2.0) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sharpness * x @ CENTRES.T


class Noisy(nn.Module):
    """Certain answers that have nothing to do with the class, and no rule that could be learned."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8 * torch.sin(1e4 * x[:, 3:])


class Specialist(nn.Module):
    """Knows some classes when it sees them, and answers like `Noisy` for all else."""

    def __init__(self, *classes: int) -> None:
        super().__init__()
        self.classes = torch.tensor(classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        good = Good()(x)
        return torch.where(torch.isin(good.argmax(1), self.classes)[:, None], good, Noisy()(x))


def student(seed: int = 5, width: int = 12) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


class Killed(BaseException):
    pass


def same_bytes_after_a_kill(
    made: Callable[[], nn.Module], context: Context, training: Training, killed_after: int, whole_work: Path
) -> None:
    """Train whole, and killed and resumed: the students' bytes must be equal. Checkpoints are to be of every step."""
    whole = train(made(), dataclasses.replace(context, work=whole_work), training)
    model, forwards = made(), 0

    def kill(module: nn.Module, *_: object) -> None:
        nonlocal forwards
        forwards += module.training
        if forwards > killed_after:
            raise Killed

    handle = model.register_forward_pre_hook(kill)
    killed = False
    try:
        train(model, context, training)
    except Killed:
        killed = True
    handle.remove()
    assert killed
    again = train(made(), context, training)
    assert [*again.state_dict()] == [*made().state_dict()]  # nothing of a strategy is left in the student
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
