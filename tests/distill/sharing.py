"""A step that other processes can go on with, without a recipe. Run as a script, it is such a process."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from kdc.core.budget import Budget
from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.core.errors import DataError, KdcError
from kdc.core.observe import silent
from kdc.distill.loop import train
from kdc.distill.policy import Policy
from kdc.distill.settings import HardLabels, Hints, SoftTargets, Training
from kdc.tasks.classification import Classification
from targets.device import load_device

PAIR = Training(
    epochs=2, batch=32, views=2, checkpoint_seconds=1e-6, processes=2,
    objectives=(HardLabels(), SoftTargets(), Hints(layers={"3": "1"})),
)  # fmt: skip
SHORT = PAIR.model_copy(update={"epochs": 1, "objectives": (SoftTargets(),)})


def network(seed: int = 6) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def in_another() -> bool:
    """Whether this is a process that shares the training of another."""
    return os.environ.get("RANK") == "1"


class Odd(nn.Module):
    """A model that does something else in the other process, for more samples than it bears."""

    def __init__(self, inner: nn.Module, most: int = 0) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if in_another() and self.training and len(x) > self.most:
            return self.other(x)
        return self.inner(x)

    def other(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


class Dying(Odd):
    def other(self, x: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return x


class Breaking(Odd):
    def other(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the cat sat on the mat")


class Exiting(Odd):
    def other(self, x: torch.Tensor) -> torch.Tensor:
        sys.exit(0)


class Infinite(Odd):
    def other(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * float("inf")


class Killed(BaseException):
    """As Ctrl-C or a kill: no part of the loop answers to it."""


class Killing(Policy):
    def after(self, batch):
        if batch.number == 3 and not in_another():
            raise Killed


def step(kind: str, context: Context) -> nn.Module:
    """What the step of this kind does."""
    match kind:
        case "whole":
            return train(network(), context, PAIR)
        case "killed":
            return train(network(), context, PAIR, [Killing()])
        case "scarce":
            return train(Odd(network(), 8), context, SHORT).inner
        case "dying" | "breaking" | "infinite" | "exiting":
            odd = {"dying": Dying, "breaking": Breaking, "infinite": Infinite, "exiting": Exiting}[kind]
            return train(odd(network()), context, SHORT)
        case "staged":
            model = train(network(), context.named("stage"), SHORT.model_copy(update={"processes": 1}))
            return train(model, context, SHORT)
        case "unlike":
            return train(network(7 if in_another() else 6), context, SHORT)
        case "refused":
            if in_another():
                raise DataError("the dog ate the data", do="feed the dog")
            return train(network(), context, SHORT)
        case "forgetful":
            if in_another():
                train(network(), context.named("more"), SHORT)
            return train(network(), context, SHORT)
    raise AssertionError(kind)


def context_in(folder: Path, kind: str, count: list[str] | None = None) -> Context:
    """The step's context; `count` gets the name of each training that another process is started for."""
    generator = torch.Generator().manual_seed(1)

    def split(n: int) -> Split:
        return Split((torch.randn((n, 1, 6, 6), generator=generator),), torch.arange(n) % 3)

    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval().requires_grad_(False)
    teacher[1].weight.copy_(torch.randn((3, 36), generator=generator))
    teacher[1].bias.zero_()
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)

    def again(training: str, other: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        if count is not None:
            count.append(training)
        shutil.copytree(work, other / "work")
        python = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
        command = [sys.executable, "-P", __file__, kind, training, str(other), str(folder)]
        return command, {**os.environ, "PYTHONPATH": python}

    return Context(
        step="test", device=load_device("cpu-ort"), task=Classification(),
        data=Splits(split(96), split(16), split(48), split(16), "fingerprint", augment=None), teacher=teacher,
        budget=Budget(), seed=0, work=work, cache=folder / "cache", emit=silent,
        teacher_cost=lambda: None, forecasts=lambda artifacts: [], again=again,
    )  # fmt: skip


def main() -> None:
    kind, training, own, folder = sys.argv[1:]
    torch.set_num_threads(2)
    context = dataclasses.replace(context_in(Path(folder), kind), work=Path(own) / "work", joins=training)
    try:
        step(kind, context)
    except KdcError as error:
        sys.exit(str(error))
    sys.exit("it went on behind the training")


if __name__ == "__main__":
    main()
