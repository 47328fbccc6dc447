"""A teacher of three classes on noise, and what a pass may use around it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from kdc.core.budget import Budget
from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.core.observe import silent
from kdc.tasks.classification import Classification
from targets.device import load_device


@pytest.fixture
def small_context(tmp_path: Path) -> Context:
    generator = torch.Generator().manual_seed(1)

    def split(n: int) -> Split:
        return Split((torch.randn((n, 1, 6, 6), generator=generator),), torch.arange(n) % 3)

    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval().requires_grad_(False)
    teacher[1].weight.copy_(torch.randn((3, 36), generator=generator))
    teacher[1].bias.zero_()
    return Context(
        step="test", device=load_device("cpu-ort"), task=Classification(),
        data=Splits(split(96), split(16), split(48), split(16), "fingerprint", augment=None), teacher=teacher,
        budget=Budget(), seed=0, work=tmp_path / "work", cache=tmp_path / "cache", emit=silent,
        teacher_cost=lambda: None, forecasts=lambda artifacts: [],
    )  # fmt: skip
