"""Where a training computes: the CPU, or a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from kdc.core.errors import ModelError
from kdc.distill.settings import Training

CPU = torch.device("cpu")


def device_of(training: Training, process: int = 0) -> torch.device:
    """The device of this process of a training.

    Raises: ModelError where the settings ask for more GPUs than there are.
    """
    if training.devices == "cpu":
        return CPU
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if training.devices == "auto" and found < training.processes:
        return CPU
    if found < training.processes:
        raise ModelError(
            f"training.devices: {training.devices} with training.processes: {training.processes} takes a GPU for each "
            f"process; found {found}",
            do="set training.devices: cpu" if not found else f"set training.processes to {found} or less",
        )
    return torch.device("cuda", process)


@contextmanager
def placed(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """These modules on the device, and back on the CPU behind it, whatever happens."""
    every = list(modules)
    try:
        for module in every:
            _move(module, device)
        yield
    finally:
        for module in every:
            _move(module, CPU)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; a GPU need not be waited for."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@torch.no_grad()
def _move(module: nn.Module, device: torch.device) -> None:
    """Not `module.to`, which makes new tensors of buffers: who holds one already would be left with the old."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device != device:
            tensor.data = tensor.data.to(device)
