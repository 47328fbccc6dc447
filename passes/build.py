"""Build: ONNX → the file that the target's runtime loads."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.observe import Note
from kdc.core.scratch import lasting_folder
from kdc.core.spec import DeviceFile


class Target(Decision):
    """The device that the file is for, with all of its profile; for a cascade, which form it takes and why."""

    device: Device
    form: Literal["file", "staged"] = Field(default="file", description="one file, or one a stage and a host's loop")
    reason: str = Field(default="", description="why a cascade is staged")


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
        """The context's device. A cascade whose `If` this device cannot use is staged.

        Raises: TargetError where its runtime has neither form.
        """
        from passes.export.staged import is_branched
        from targets.cascade import RUNTIMES

        if not is_branched(artifact.model):
            return Target(device=context.device)
        if context.device.runtime not in RUNTIMES:
            raise TargetError(f"target {context.device.name}: {context.device.runtime} has no form for early exits")
        reason = _against_if(context.device)
        if reason:
            context.emit(Note(reason))
        return Target(device=context.device, form="staged" if reason else "file", reason=reason)

    def apply(self, artifact: Any, decision: Target) -> Any:
        """The built file, in a folder of this process's own that is gone when it ends: whoever keeps it copies it."""
        import onnx_ir

        from passes.export.staged import split, with_free_batch, write
        from targets.runtime import runtime_of

        device = decision.device
        folder = _scratch() / artifact.digest()
        folder.mkdir(exist_ok=True)
        if decision.form == "staged":
            inputs = with_free_batch(artifact.inputs)
            path = write(
                split(artifact.model, inputs),
                folder,
                lambda stage: runtime_of(device).build(stage, folder, device).path,
            )
            free = replace(artifact, inputs=inputs, outputs=with_free_batch(artifact.outputs))
            return free.with_model(DeviceFile(path, device.runtime))
        onnx_path = folder / "model.onnx"
        onnx_ir.save(artifact.model, onnx_path)
        return artifact.with_model(runtime_of(device).build(onnx_path, folder, device))


def _against_if(device: Device) -> str:
    """Why a cascade cannot be one file with `If` on this device; empty where it can."""
    if "If" in device.unsupported_operators:
        return f"target {device.name} has no operator If: the staged form leaves the choice to the host"
    if device.batch > 1:
        return (
            f"If decides for a whole batch, and this target runs batches of {device.batch}: the staged form decides for "
            "each sample"
        )
    return ""


@cache
def _scratch() -> Path:
    return lasting_folder("build")
