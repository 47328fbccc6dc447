"""Whether the target has every operator of the exported model: asked before any training time is spent."""

from __future__ import annotations

import onnx_ir

from kdc.core.device import Device
from kdc.core.errors import TargetError


def operators(model: onnx_ir.Model) -> dict[str, int]:
    """How often each operator stands in the graph and its subgraphs; "domain::Name" outside the standard domain."""
    counts: dict[str, int] = {}
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def lint(model: onnx_ir.Model, device: Device) -> None:
    """Compare the model's operators with the profile's.

    Raises: TargetError naming every operator that the target lacks, and how often the model has it.
    """
    lacking = {name: n for name, n in operators(model).items() if name in device.unsupported_operators}
    if lacking:
        named = ", ".join(f"{name} ({n} times)" for name, n in lacking.items())
        raise TargetError(
            f"target {device.name} has no operator {named}, which the teacher's exported graph uses",
            do="replace these operators in the teacher, or choose a target that has them (`kdc targets`)",
        )
