"""Every pass declares what `decide` and `tune` read of the budget and the target, for each of its kinds of settings."""

from dataclasses import replace

import pytest
import torch

from kdc.core.budget import Budget, Cost
from kdc.core.contract import Fact
from kdc.core.observe import silent
from kdc.core.reads import watched
from kdc.core.store import Store
from kdc.driver.inputs import load
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Steps
from passes import PASSES

NONE = {"max_drop": None}
EVERY = {
    "latency_ms": 5, "latency_ms@cold": 5, "min_speedup": 1.01, "size_mb": 5, "macs": 1e7, "peak_memory_mb": 5,
    "max_drop": 1, "compile_minutes": 100,
}  # fmt: skip
LIMITS = {"latency_ms", "latency_ms_cold", "min_speedup", "size_mb", "macs", "peak_memory_mb"}
FREE = {"training": {"epochs": 0}}
SHORT = {"training": {"epochs": 1, "batch": 128}}
SEARCH = {
    "spaces": [{"family": "plain", "depth": [1, 3], "channels": [4, 8]}], "population": 2, "generations": 0,
    "finalists": 2, **SHORT,
}  # fmt: skip
PLAIN = {"family": "plain", "layers": [{"channels": 8, "stride": 2}]}

# (pass, settings, budget, fields that are read, whether it measures)
CASES = [
    ("prune", FREE, EVERY, LIMITS, True),
    ("prune", FREE, NONE, LIMITS - {"peak_memory_mb"}, False),
    *(("prune", FREE, {**NONE, name: EVERY[name]}, LIMITS, True) for name in ("latency_ms@cold", "size_mb", "macs")),
    ("prune", {"keep_macs": 0.5, **FREE}, EVERY, set(), False),
    ("search", SEARCH, EVERY, LIMITS, True),
    ("search", SEARCH, {**NONE, "macs": 1e7}, LIMITS, False),
    ("search", {"student": PLAIN, **SHORT}, EVERY, set(), False),
    ("distill", SHORT, EVERY, set(), False),
    ("distill", {"assistants": {"keep_macs": [0.5]}, **SHORT}, EVERY, set(), False),
    ("quantize", {"qat": "auto", **FREE}, EVERY, {"max_drop"}, False),
    ("quantize", {"qat": "auto", **FREE}, NONE, {"max_drop"}, False),
    ("quantize", {"qat": "always", **FREE}, EVERY, set(), False),
    ("quantize", {"qat": "never"}, EVERY, set(), False),
    ("route", SHORT, EVERY, set(), True),
    ("export", {}, EVERY, set(), False),
    ("simplify", {}, EVERY, set(), False),
    ("build", {}, EVERY, set(), False),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Nothing here is large enough for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cost(artifact):
    parameters = sum(parameter.numel() for parameter in artifact.model.parameters())
    return Cost(
        latency_ms=parameters * 1e-4, cold_ms=parameters * 2e-4, size_mb=1, macs=parameters, parameters=parameters,
        peak_memory_mb=1,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "limits", "read", "measures"), CASES)
def test_a_pass_reads_what_it_declares(shapes, tmp_path, kind, settings, limits, read, measures):
    inputs = load(load_recipe(shapes / "recipe.yaml", {}, [], PASSES))
    budget = Budget.model_validate(limits)
    inputs = replace(inputs, recipe=inputs.recipe.model_copy(update={"budget": budget}))
    made = PASSES[kind].model_validate(settings)
    assert (set(made.reads(budget)), made.measures(budget)) == (read, measures)

    context = Steps(inputs, Store(tmp_path / "store"), silent).context(
        kind, "0", lambda artifacts: [cost(one) for one in artifacts], lambda: cost(inputs.teacher)
    )
    context.work.mkdir(parents=True)
    artifact = inputs.teacher
    if Fact.ONNX in made.contract(inputs.device).requires:
        export = PASSES["export"]()
        artifact = export.apply(artifact, export.decide(artifact, context))
    seen, reads = watched(context, made)
    decision = made.decide(artifact, seen)
    made.tune(made.apply(artifact, decision), seen)
    reads.check()
    assert reads.budget <= read
    assert reads.measured == measures


def test_every_pass_is_held_to_it():
    assert {kind for kind, *_ in CASES} == set(PASSES)


@pytest.mark.parametrize("kind", PASSES)
def test_the_structure_does_not_depend_on_what_structural_leaves_out(shapes, tmp_path, kind):
    """A later pass is forecast with by its `structural()` settings, which are all of it in the key of the pass that asks."""
    inputs = load(load_recipe(shapes / "recipe.yaml", {}, [], PASSES))
    longer = {"training": {"epochs": 7}, "stages": [{"epochs": 3}], "qat": "always", "drop_share": 3.0}
    plain = {"search": {"student": PLAIN}, "prune": {"keep_macs": 0.5}}.get(kind, {})
    fields = PASSES[kind].model_fields
    one = PASSES[kind].model_validate(plain)
    other = PASSES[kind].model_validate({**plain, **{name: longer[name] for name in longer if name in fields}})
    if kind == "route":  # it trains to decide, and is in no forecast for it measures
        assert other.structural() == other
        return
    assert one.structural() == other.structural()
    assert one.structural().structural() == one.structural()
    budget = Budget.model_validate(EVERY)
    if Fact.TORCH not in one.contract(inputs.device).requires or kind == "export":
        return
    context = Steps(inputs, Store(tmp_path / "store"), silent).context(kind, "0", None, None)
    context = replace(context, budget=budget)
    context.work.mkdir(parents=True)
    decisions = []
    for settings in (other, other.structural()):
        seen, reads = watched(context, settings)
        decisions.append(settings.decide(inputs.teacher, seen))
        reads.check()
        assert not reads.budget
    assert decisions[0] == decisions[1]
    made = [s.apply(inputs.teacher, d).model for s, d in zip((other, other.structural()), decisions, strict=True)]
    probe = inputs.data.calibration.inputs[0][:4]
    with torch.no_grad():
        assert torch.equal(made[0].eval()(probe), made[1].eval()(probe))
