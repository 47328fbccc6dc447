"""Export: torch → ONNX, in the opset that the target names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device


class Interface(Decision):
    """The face of the file: its ONNX opset, and the names of its inputs and outputs in call order."""

    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Export(Pass[Interface]):
    """Write the torch model as ONNX operators, with a free batch size and nothing left of training."""

    kind: ClassVar[str] = "export"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnx-ir", "onnxscript")
    decision_type: ClassVar[type[Decision]] = Interface

    opset: int | None = Field(default=None, ge=18, description="ONNX opset; absent: the one that the target names")

    def contract(self, device: Device) -> Contract:
        """TORCH and FITTED in, ONNX out."""
        return Contract(
            requires=frozenset({Fact.TORCH, Fact.FITTED}),
            provides=frozenset({Fact.ONNX}),
            destroys=frozenset({Fact.TORCH}),
        )

    def decide(self, artifact: Any, context: Context) -> Interface:
        """The target's opset, the artifact's names."""
        return Interface(
            opset=self.opset or context.device.opset,
            inputs=tuple(spec.name for spec in artifact.inputs),
            outputs=tuple(spec.name for spec in artifact.outputs),
        )

    def apply(self, artifact: Any, decision: Interface) -> Any:
        """The same model as an `onnx_ir.Model`, its inputs and outputs named as the decision says."""
        from passes.export.lower import lower

        named = replace(
            artifact,
            inputs=_renamed(artifact.inputs, decision.inputs),
            outputs=_renamed(artifact.outputs, decision.outputs),
        )
        return named.with_model(lower(named, decision.opset))


def _renamed(specs: tuple[Any, ...], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(spec.model_copy(update={"name": name}) for spec, name in zip(specs, names, strict=True))
