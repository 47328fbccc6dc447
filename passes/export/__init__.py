"""Export: torch → ONNX, in the opset that the target names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device
from kdc.core.spec import TensorSpec


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
        """The target's opset, the artifact's names; a cascade's file also tells which exit was taken."""
        from kdc.core.cascade import Cascade
        from passes.export.branches import EXIT

        outputs = tuple(spec.name for spec in artifact.outputs)
        return Interface(
            opset=self.opset or context.device.opset,
            inputs=tuple(spec.name for spec in artifact.inputs),
            outputs=(*outputs, EXIT) if isinstance(artifact.model, Cascade) else outputs,
        )

    def apply(self, artifact: Any, decision: Interface) -> Any:
        """The same model as an `onnx_ir.Model`, its inputs and outputs named as the decision says.

        A cascade becomes one file for batch 1, and its output `exit` [1] (int64) is the place of the exit taken.
        """
        from kdc.core.cascade import Cascade
        from kdc.core.origins import write_origins
        from passes.export.branches import branched, layer_name
        from passes.export.lower import lower

        cascade = isinstance(artifact.model, Cascade)
        outputs = decision.outputs[:-1] if cascade else decision.outputs
        named = replace(
            artifact,
            inputs=_renamed(artifact.inputs, decision.inputs),
            outputs=_renamed(artifact.outputs, outputs),
        )
        if not cascade:
            model = lower(named, decision.opset)
            write_origins(model, dict(named.origins))
            return named.with_model(model)
        taken = TensorSpec(name=decision.outputs[-1], shape=(1,), dtype="int64")
        model = branched(named, decision.opset, taken.name)
        write_origins(model, {layer_name(name): origin for name, origin in named.origins})
        return replace(
            named,
            model=model,
            inputs=tuple(_for_one(spec) for spec in named.inputs),
            outputs=(*(_for_one(spec) for spec in named.outputs), taken),
        )


def _for_one(spec: TensorSpec) -> TensorSpec:
    return spec.model_copy(update={"shape": (1, *spec.shape[1:])})


def _renamed(specs: tuple[Any, ...], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(spec.model_copy(update={"name": name}) for spec, name in zip(specs, names, strict=True))
