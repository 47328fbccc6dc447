"""Simplify: ONNX → ONNX with fewer operators and the same outputs."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device


class Rounds(Decision):
    """How often folding and rewriting are repeated; they stop before when nothing changes."""

    rounds: int


class Simplify(Pass[Rounds]):
    """Fold constants, merge equal operators, and drop identities, dead code and unused weights from the ONNX graph."""

    kind: ClassVar[str] = "simplify"
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnx-ir", "onnxscript")
    decision_type: ClassVar[type[Decision]] = Rounds

    rounds: int = Field(default=3, ge=1, description="the most rounds of folding and rewriting")

    def contract(self, device: Device) -> Contract:
        """ONNX in, ONNX out."""
        return Contract(requires=frozenset({Fact.ONNX}))

    def decide(self, artifact: Any, context: Context) -> Rounds:
        """What the settings say."""
        return Rounds(rounds=self.rounds)

    def apply(self, artifact: Any, decision: Rounds) -> Any:
        """A smaller graph; weights behind a DequantizeLinear stay integers."""
        from onnx_ir.passes import common
        from onnxscript import optimizer

        from passes.export.lower import canonical, check

        model = artifact.model.clone()
        common.RemoveInitializersFromInputsPass()(model)  # what a caller could replace is no constant
        # onnxscript leaves QuantizeLinear and DequantizeLinear alone when it folds: integer weights stay integers.
        optimizer.optimize_ir(model, num_iterations=decision.rounds, stop_if_no_change=True)
        common.IdentityEliminationPass()(model)
        common.DeduplicateInitializersPass()(model)
        common.RemoveUnusedNodesPass()(model)
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass()(model)
        common.TopologicalSortPass()(model)
        canonical(model)
        check(model)
        return artifact.with_model(model)
