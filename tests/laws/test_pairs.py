"""Every ordered pair of passes either plans and works, or is refused at plan time: never a failure in the middle."""

import itertools
from pathlib import Path

import pytest

from kdc.core.errors import PlanError
from kdc.core.observe import silent
from kdc.core.store import Store
from kdc.distill.settings import Training
from kdc.driver.inputs import load
from kdc.driver.lowering import Lowering
from kdc.driver.plan import make
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Steps
from passes import PASSES
from passes.search.spaces import PlainSpace
from targets.device import load_device

SHORT = Training(epochs=1, batch=64)
SETTINGS = {
    "search": {
        "spaces": (PlainSpace(depth=(2, 3), channels=(8, 16), reductions=(0, 2)),),
        "population": 2, "generations": 0, "finalists": 2, "training": SHORT,
    },
    "prune": {"keep_macs": 0.5, "alignment": 4, "training": SHORT},
    "distill": {"training": SHORT},
    "quantize": {"qat": "never"},
    "route": {"max_drop": 30.0, "max_exits": 1, "training": SHORT},
}  # fmt: skip
DEVICE = load_device("cpu-ort")
KINDS = tuple(PASSES)


def chosen(*kinds):
    return [PASSES[kind].model_validate(SETTINGS.get(kind, {})) for kind in kinds]


def legal(*kinds):
    try:
        make(chosen(*kinds), DEVICE)
    except PlanError:
        return False
    return True


PAIRS = list(itertools.product(KINDS, repeat=2))
LEGAL = [pair for pair in PAIRS if legal(*pair)]


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in LEGAL], ids="-".join)
def test_a_pair_that_cannot_work_is_refused_with_the_fact_and_the_step(pair):
    with pytest.raises(PlanError, match=r"step \d \w+ needs '\w+', which (step \d \w+ removed|no step before)"):
        make(chosen(*pair), DEVICE)


def test_routing_ends_what_other_passes_may_do():
    compressing = ("search", "prune", "distill", "quantize", "route")
    assert not any(legal("route", kind) for kind in compressing)
    assert all(legal(kind, "route") for kind in compressing if kind != "route")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """One for all pairs: a first step is made for the first of its pairs, and taken from here for the others."""
    return Store(tmp_path_factory.mktemp("pairs"))


@pytest.mark.slow
@pytest.mark.parametrize("pair", LEGAL, ids="-".join)
def test_a_pair_that_plans_works(pair, shapes: Path, store: Store):
    recipe = load_recipe(shapes / "recipe.yaml", {}, [], PASSES).model_copy(update={"passes": tuple(chosen(*pair))})
    inputs = load(recipe)
    plan = make(recipe.passes, inputs.device)
    steps = Steps(inputs, store, silent)
    lowering = Lowering(steps, plan)
    made, of = steps.root, len(plan.compress)
    candidates = [lowering.teacher]
    for number, planned in enumerate(plan.compress, start=1):
        rest = plan.compress[number:]
        made = steps.run(planned.label, planned, made, (number, of), lowering.forecasts(rest), lowering.teacher_cost)
        candidates.append(lowering.student(made))
    assert len(candidates) == 1 + of
    assert all(len(one.scores) == len(inputs.data.validation) for one in candidates)
