"""A training that is killed in the middle and begun again, beside one that was left alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from kdc.core.contract import Context
from kdc.distill.loop import train
from kdc.distill.settings import Training


class Killed(BaseException):
    """What no code may catch."""


def whole_and_gone_on(
    network: Callable[[], nn.Module], context: Context, training: Training, folder: Path, killed_after: int
) -> tuple[nn.Module, nn.Module]:
    """The student of an undisturbed training, and of one killed after so many training forwards, then begun again."""
    whole = train(network(), dataclasses.replace(context, work=folder / "whole"), training)
    student, forwards = network(), 0

    def kill(*_: object) -> None:
        nonlocal forwards
        forwards += student.training
        if forwards > killed_after:
            raise Killed

    student.register_forward_pre_hook(kill)
    with pytest.raises(Killed):
        train(student, context, training)
    return whole, train(network(), context, training)


def same_bytes(one: nn.Module, other: nn.Module) -> bool:
    """Whether all tensors of two models are equal to the bit."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
