"""Simplify: ONNX → ONNX with fewer operators and the same outputs."""

from __future__ import annotations

from dataclasses import replace
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
        """A smaller graph; weights behind a DequantizeLinear stay integers, and a cascade's weights in their branches."""
        from kdc.core.origins import origins_of, write_origins
        from passes.export.branches import join
        from passes.export.staged import is_branched, split, with_free_batch

        if not is_branched(artifact.model):
            return artifact.with_model(_smaller(artifact.model, decision.rounds))
        # Stage by stage: onnxscript lifts a branch's weights out of it, and takes the node that ends a branch for idle.
        staged = split(artifact.model, with_free_batch(artifact.inputs))
        stages = tuple(_smaller(stage, decision.rounds) for stage in staged.models)
        whole = join(replace(staged, models=stages))
        write_origins(whole, origins_of(artifact.model))
        return artifact.with_model(whole)


def _smaller(model: Any, rounds: int) -> Any:
    from onnx_ir.passes import common
    from onnxscript import optimizer

    from passes.export.lower import canonical, check

    model = model.clone()
    common.RemoveInitializersFromInputsPass()(model)  # what a caller could replace is no constant
    # onnxscript leaves QuantizeLinear and DequantizeLinear alone when it folds: integer weights stay integers.
    optimizer.optimize_ir(model, num_iterations=rounds, stop_if_no_change=True)
    common.IdentityEliminationPass()(model)
    _hand_out(model)
    common.DeduplicateInitializersPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    common.TopologicalSortPass()(model)
    canonical(model)
    check(model)
    return model


def _hand_out(model: Any) -> None:
    """Give back the Identity by which a subgraph hands out a value from outside it: none may without a node."""
    import onnx_ir

    for graph in model.graph.subgraphs():
        for index, value in enumerate(graph.outputs):
            made = value.producer() is not None and value.producer().graph is graph
            if not made and not (value.is_initializer() and value.graph is graph):
                node = onnx_ir.node("Identity", [value], name=f"{value.name}.out_{index}")
                node.outputs[0].name = node.name
                graph.append(node)
                graph.outputs[index] = node.outputs[0]
