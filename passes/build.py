"""Build: ONNX → the file that the target's runtime loads."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device


class Target(Decision):
    """The device that the file is for, with all of its profile."""

    device: Device


class Build(Pass[Target]):
    """Hand the ONNX graph to the target's runtime, which gives the file that ships."""

    kind: ClassVar[str] = "build"
    libraries: ClassVar[tuple[str, ...]] = ("onnx-ir",)
    decision_type: ClassVar[type[Decision]] = Target

    def contract(self, device: Device) -> Contract:
        """ONNX in, a device's file out."""
        return Contract(
            requires=frozenset({Fact.ONNX}), provides=frozenset({Fact.DEVICE}), destroys=frozenset({Fact.ONNX})
        )

    def decide(self, artifact: Any, context: Context) -> Target:
        """The context's device."""
        return Target(device=context.device)

    def apply(self, artifact: Any, decision: Target) -> Any:
        """The built file, in a folder of this process's own that is gone when it ends: whoever keeps it copies it."""
        import onnx_ir

        from targets.runtime import runtime_of

        folder = Path(_scratch().name) / artifact.digest()
        folder.mkdir(exist_ok=True)
        onnx_path = folder / "model.onnx"
        onnx_ir.save(artifact.model, onnx_path)
        return artifact.with_model(runtime_of(decision.device).build(onnx_path, folder, decision.device))


@cache
def _scratch() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="kdc-build-")
