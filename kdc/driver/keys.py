"""What the keys of the store are made of: all that could change the result of a step, or of a measurement."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from kdc.core.budget import Budget
from kdc.core.contract import Fact
from kdc.core.device import Device
from kdc.core.errors import ModelError
from kdc.core.reads import budget_parts
from kdc.core.store import Parts
from kdc.core.usercode import load_callable, source_fingerprint
from kdc.distill.sources import named_in, source_digest
from kdc.driver.inputs import Inputs, builder_parts
from kdc.driver.plan import AnyPass, Planned
from kdc.driver.sources import digest, digests, versions
from targets.runtime import runtime_of

WORKER = "targets.worker"


def root_parts(inputs: Inputs) -> Parts:
    """What the teacher's key is made of."""
    return {"teacher": inputs.teacher.digest(), **builder_parts(inputs), "data": inputs.data.fingerprint}


def cache_parts(inputs: Inputs) -> Parts:
    """What the teacher's outputs over augmented views depend on."""
    return {
        **root_parts(inputs),
        "seed": inputs.recipe.seed,
        "source": digests("kdc.distill.teacher_answers"),
        "libraries": versions(("torch",)),
    }


def step_parts(settings: AnyPass, previous_key: str, inputs: Inputs, after: Sequence[Planned] = ()) -> Parts:
    """All that could change the result of a pass after the step of this key.

    Args: after: the passes that follow it, whose structure its forecasts are made with.
    """
    budget: Budget = inputs.recipe.budget
    teacher = inputs.teacher
    own = _pass_parts(settings, budget)
    parts: Parts = {
        "previous": previous_key,
        **own,
        "source": own["source"] | digests(type(inputs.task).__module__),
        **root_parts(inputs),
        "inputs": [spec.model_dump(mode="json") for spec in teacher.inputs],
        "outputs": [spec.model_dump(mode="json") for spec in teacher.outputs],
        "task": inputs.task.name,
        "seed": inputs.recipe.seed,
        "device": inputs.device.model_dump(mode="json"),
        "threads": torch.get_num_threads(),
    }
    measures = settings.measures(budget)
    teachers = [source_digest(one, inputs.recipe.seed) for one in named_in(settings)]
    if teachers:
        parts["teachers"] = teachers
    if measures or Fact.DEVICE in settings.contract(inputs.device).provides:
        parts["runtime"] = versions((inputs.device.runtime,))
    if measures:
        parts["machine"] = machine()
        parts["forecasts"] = _forecast_parts(after, inputs)
    return parts


def _pass_parts(settings: AnyPass, budget: Budget) -> Parts:
    """What a pass's settings make its result depend on."""
    parts: Parts = {
        "pass": settings.kind,
        "version": settings.version,
        "source": digests(type(settings).__module__),
        "settings": settings.model_dump(mode="json"),
        "budget": budget_parts(settings, budget),
        "libraries": versions(settings.libraries),
    }
    if settings.code():
        parts["code"] = {spec: _fingerprint(spec) for spec in settings.code()}
    return parts


def _forecast_parts(after: Sequence[Planned], inputs: Inputs) -> Parts:
    """What forecasts depend on, beside the artifact, the device and the machine: see `Lowering.forecasts`."""
    budget = inputs.recipe.budget
    structural = forecast_with(after, budget)
    return {
        "after": {"order": [one.label for one in structural]}
        | {one.label: _pass_parts(one.settings.structural(), budget) for one in structural},
        "cold": budget.latency_ms_cold is not None,
        "peak_memory": budget.peak_memory_mb is not None,
        "source": digest("kdc.driver.lowering") | measuring_parts(inputs.device, "targets.quick")["source"],
    }


def forecast_with(after: Sequence[Planned], budget: Budget) -> list[Planned]:
    """Those of the later passes whose structure a forecast is made with: all but those that measure themselves."""
    return [planned for planned in after if not planned.settings.measures(budget)]


def _fingerprint(spec: str) -> str:
    return source_fingerprint(load_callable(spec, Path.cwd(), "passes", ModelError))


def measuring_parts(device: Device, module: str = "targets.measure") -> Parts:
    """All that a latency depends on, beside the files that are timed.

    Args: module: what times them; the process that it starts, and knows by name alone, is beside it.
    """
    return {
        "device": device.model_dump(mode="json"),
        "machine": machine(),
        "runtime": versions((device.runtime,)),
        "source": digests(module) | digests(WORKER) | digests(type(runtime_of(device)).__module__),
    }


def machine() -> str:
    """The class of machine that a measurement belongs to."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{platform.system()} {platform.machine()} {model}"
