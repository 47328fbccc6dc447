"""A trained student as sure as it is right: the best temperature goes into the weights of its last layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.observe import Note
from kdc.distill.modes import evaluating
from kdc.distill.settings import Training
from kdc.distill.teacher import predict

_PROBE = 16  # samples on which a scaled layer is seen to scale the outputs
_NEAR = 0.05  # a temperature as near to 1 as that changes nothing that anybody would see


def calibrate(student: nn.Module, context: Context, training: Training, frozen: Sequence[nn.Module] = ()) -> None:
    """Divide the student's outputs by the temperature that fits the validation split's labels best, in its last layer.

    No sample gets another class. A last layer that is frozen stays as it is; so does one whose weights do not scale the
    outputs, or not them alone (a softmax stands last, an embedding shares them), and a note says so.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2. That the temperature goes into the weights is ours.
    """
    if not training.calibrated:
        return
    split = context.data.validation
    temperature = context.task.temperature(predict(student, split).numpy(), split.labels.numpy())
    fixed = {id(parameter) for module in frozen for parameter in module.parameters()}
    with evaluating(student), torch.no_grad():
        probe = split[:_PROBE].inputs
        own = _last_parameters(student, probe)
        if abs(temperature - 1) < _NEAR or fixed & {id(parameter) for parameter in own}:
            return
        wanted = student(*probe) / temperature
        before = [parameter.clone() for parameter in own]
        for parameter in own:
            parameter.div_(temperature)
        if torch.allclose(student(*probe), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
            context.emit(Note(f"{context.step}: logits divided by {temperature:.3g}, in the last layer's weights"))
            return
        for parameter, old in zip(own, before, strict=True):
            parameter.copy_(old)
    context.emit(
        Note(
            f"{context.step}: the logits would have to be divided by {temperature:.3g} to be as sure as they are right, "
            "and the last layer's weights do not scale them alone"
        )
    )


def _last_parameters(model: nn.Module, probe: tuple[torch.Tensor, ...]) -> list[nn.Parameter]:
    """Those of the module that ended last of all that have any of their own."""
    ran: list[nn.Module] = []
    with _watching(model, ran):
        model(*probe)
    return [*ran[-1].parameters(recurse=False)] if ran else []


@contextmanager
def _watching(model: nn.Module, ran: list[nn.Module]) -> Iterator[None]:
    """What has parameters of its own is appended as it runs."""
    own = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    hooks = [module.register_forward_hook(lambda module, *_: ran.append(module)) for module in own]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
