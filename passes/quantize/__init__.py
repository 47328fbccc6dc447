"""Quantize: weights and activations to 8-bit integers, in the scheme that the target is fast in."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from kdc.core.budget import Budget
from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device, QuantizationScheme
from kdc.distill.settings import Training


class Grid(BaseModel, frozen=True, extra="forbid"):
    """Where a tensor's integers stand: real = scale * (integer - zero_point)."""

    bits: Literal[8] = 8
    scale: float = Field(gt=0)
    zero_point: int


class Ranges(Decision):
    """The layers that are quantized, and the grid of each tensor (by the name of the first of those that share it)."""

    layers: tuple[str, ...]
    activations: dict[str, Grid]
    scheme: QuantizationScheme
    weights: Literal["max_abs", "mse"]


class Quantize(Pass[Ranges]):
    """Hold weights and activations to 8-bit integers by calibration; distil into them where that costs too much."""

    kind: ClassVar[str] = "quantize"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "brevitas")
    decision_type: ClassVar[type[Decision]] = Ranges

    calibration: Literal["minmax", "percentile", "mse"] = Field(
        default="mse",
        description="how a tensor's range is chosen: its ends, the middle that holds `percentile`, or the part with "
        "the least squared error (Choukroun et al. 2019, arXiv:1902.06822; compared: Wu et al. 2020, arXiv:2004.09602)",
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="per cent of a tensor's values (Wu et al. 2020, arXiv:2004.09602)"
    )
    samples: int = Field(default=512, ge=1, description="the most calibration samples, spread evenly over the split")
    weights: Literal["max_abs", "mse"] = Field(
        default="max_abs", description="the range of a channel's weights (Krishnamoorthi 2018, arXiv:1806.08342)"
    )
    keep_float: tuple[str, ...] = Field(
        default=(),
        description="names of layers whose weights are not quantized (ONNX Runtime 1.31 itself quantizes what stands "
        "between two quantizers: name the neighbours too)",
    )
    drop_share: float = Field(
        default=0.4,
        ge=0,
        description="share of the budget's max_drop (1 point where it has none) that calibration alone may cost on the "
        "validation split before quantization-aware training is used",
    )
    qat: Literal["auto", "always", "never"] = Field(
        default="auto", description="quantization-aware distillation (LSQ: Esser et al. 2020, arXiv:1902.08153)"
    )
    training: Training = Field(default=Training(epochs=3, learning_rate=2e-4, ema=0.99), description="of that training")

    def contract(self, device: Device) -> Contract:
        """A trained float model without data-dependent control flow in; out, one that is no longer float."""
        return Contract(
            requires=frozenset({Fact.TORCH, Fact.FLOAT, Fact.FITTED, Fact.STATIC}), destroys=frozenset({Fact.FLOAT})
        )

    def refused(self, device: Device) -> str | None:
        """A target without an integer format that its runtime is fast in has nothing to quantize to."""
        if device.quantization is not None:
            return None
        return f"target {device.name} has no integer format that kdc's file could be run in by {device.runtime}"

    def reads(self, budget: Budget) -> tuple[str, ...]:
        """How much it may cost, where that decides on training."""
        return ("max_drop",) if self.qat == "auto" else ()

    def structural(self) -> Quantize:
        """Without what decides on the training, and the training."""
        default = Quantize()
        return self.model_copy(update={"qat": "never", "drop_share": default.drop_share, "training": default.training})

    def training_epochs(self) -> float:
        """Those of its training."""
        return self.training.epochs

    def decide(self, artifact: Any, context: Context) -> Ranges:
        """The range of every tensor that the target wants as integers, over the calibration split.

        Raises: TargetError where the target has no integer format; ModelError where `keep_float` names no layer.
        """
        from passes.quantize.decide import decide

        return decide(self, artifact, context)

    def apply(self, artifact: Any, decision: Ranges) -> Any:
        """The model as a trainable graph, BatchNorms folded, with quantizers where the target wants integers."""
        from passes.quantize.assemble import assemble

        return artifact.with_model(assemble(artifact, decision))

    def tune(self, artifact: Any, context: Context) -> Any:
        """Measure what calibration cost; where it is too much, distil the teacher into the quantized model."""
        from passes.quantize.recover import recover

        return artifact.with_model(recover(self, artifact.model, context))
