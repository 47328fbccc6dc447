"""What calibration cost, and the training that wins it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from kdc.core.contract import Context
from kdc.core.observe import Note
from kdc.distill.loop import train
from kdc.distill.teacher import reached
from passes.quantize.quantizers import in_float

if TYPE_CHECKING:
    from passes.quantize import Quantize

POINTS_WITHOUT_BUDGET = 1.0


def recover(settings: Quantize, model: nn.Module, context: Context) -> nn.Module:
    """The model as it came, or trained further where calibration cost too much and training made it better."""
    with in_float(model):
        reference = reached(model, context)
    calibrated = reached(model, context)
    told = (
        f"{context.step}: {context.task.metric} {reference:.2f} in float, {calibrated:.2f} in integers by calibration"
    )
    if settings.qat == "never":
        context.emit(Note(told))
        return model.eval()
    if settings.qat == "auto":  # the budget is read in this case alone, and the others are not redone for another one
        limit = context.budget.drop
        allowed = settings.drop_share * (POINTS_WITHOUT_BUDGET if limit is None else limit.points)
        if reference - calibrated <= allowed:
            context.emit(Note(f"{told} (allowed: {allowed:.2f} points lower)"))
            return model.eval()
    if context.out_of_time("qat", "no quantization-aware distillation"):
        context.emit(Note(told))
        return model.eval()
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model = train(model, context.named("qat"), settings.training)
    trained = reached(model, context)
    if trained > calibrated:
        context.emit(Note(f"{told}, {trained:.2f} after quantization-aware distillation"))
    else:
        model.load_state_dict(before)
        context.emit(Note(f"{told}; quantization-aware distillation gave {trained:.2f} and was put back"))
    return model.eval()
