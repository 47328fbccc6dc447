"""The order of passes, and whether it can work: the contracts are folded before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdc.core.contract import Fact, Pass
from kdc.core.device import Device
from kdc.core.errors import PlanError
from passes import LOWERING, PASSES, default_passes

if TYPE_CHECKING:
    from kdc.core.artifact import Step

AnyPass = Pass[Any]
TEACHER_FACTS = frozenset({Fact.TORCH, Fact.FITTED, Fact.FLOAT, Fact.STATIC})


@dataclass(frozen=True)
class Planned:
    """One pass in its place; `label` is unique in the plan; `facts` hold after it; `after`: the passes that follow."""

    label: str
    settings: AnyPass
    facts: frozenset[Fact]
    after: tuple[Planned, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Passes that change the student, then those that turn it into what the device loads.

    The lowering is applied to the teacher and after every compressing pass, so that each is judged as a device file.
    """

    compress: tuple[Planned, ...]
    lowering: tuple[Planned, ...]

    def lowered(self, step: str) -> list[tuple[str, Planned]]:
        """The passes that lower the model of this step, each with its name in the store."""
        return [(f"{step}+{planned.label}", planned) for planned in self.lowering]


def facts_of(lineage: Sequence[Step], device: Device) -> frozenset[Fact]:
    """What holds of an artifact of this lineage: the contracts of its steps, folded from the teacher on."""
    facts = TEACHER_FACTS
    for step in lineage:
        contract = PASSES[step.kind].model_validate(step.settings).contract(device)
        facts = (facts - contract.destroys) | contract.provides
    return facts


def make(chosen: Sequence[AnyPass] | None, device: Device) -> Plan:
    """The plan of these passes (None: the target's default list), lowering passes added where they are absent.

    Raises: PlanError naming the step, and why it cannot work for this device, or the fact that it lacks and the step
        that took it away.
    """
    order = list(default_passes(device) if chosen is None else chosen)
    kinds = {settings.kind for settings in order}
    order += [lowering() for lowering in LOWERING if lowering.kind not in kinds]
    facts, removed_by = TEACHER_FACTS, dict[Fact, str]()
    planned: list[Planned] = []
    for number, settings in enumerate(order, start=1):
        contract = settings.contract(device)
        if (reason := settings.refused(device)) is not None:
            raise PlanError(f"step {number} {settings.kind}: {reason}", do=f"take `{settings.kind}` out of the passes")
        for fact in sorted(contract.requires - facts):
            where = f"step {number} {settings.kind} needs '{fact}'"
            if fact in removed_by:
                raise PlanError(f"{where}, which {removed_by[fact]} removed", do="change the order of `passes`")
            raise PlanError(f"{where}, which no step before it provides", do="add such a step to `passes`")
        for fact in contract.destroys:
            removed_by[fact] = f"step {number} {settings.kind}"
        facts = (facts - contract.destroys) | contract.provides
        same = [p.label for p in planned if p.settings.kind == settings.kind]
        label = settings.kind if not same else f"{settings.kind}.{len(same) + 1}"
        planned.append(Planned(label, settings, facts))
    for index in reversed(range(len(planned))):
        planned[index] = replace(planned[index], after=tuple(planned[index + 1 :]))
    if Fact.DEVICE not in facts:
        raise PlanError("the plan ends without a file that the target's runtime loads", do="put `build` last")
    first_lowering = next(i for i, p in enumerate(planned) if Fact.TORCH not in p.facts)
    return Plan(tuple(planned[:first_lowering]), tuple(planned[first_lowering:]))
