"""What a pass reads and does not declare fails its step, by whichever way it reads."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from kdc.core.budget import Budget, Cost, within
from kdc.core.contract import Context, Contract, Decision, Pass
from kdc.core.data import Split, Splits
from kdc.core.device import Device
from kdc.core.errors import LawError
from kdc.core.observe import silent
from kdc.core.reads import DECLARED, HARMLESS, IN_KEY, budget_parts, watched
from kdc.tasks.classification import Classification

COST = Cost(latency_ms=1.0, size_mb=1.0, macs=1.0, parameters=1)
ALL = tuple(Budget.model_fields)


class Nothing(Decision):
    """Nothing is decided."""


class Toy(Pass[Nothing]):
    """Declares what its settings say."""

    kind: ClassVar[str] = "toy"
    decision_type: ClassVar[type[Decision]] = Nothing

    declared: tuple[str, ...] = ()
    timed: bool = False

    def contract(self, device):
        return Contract(requires=frozenset())

    def reads(self, budget):
        return self.declared

    def measures(self, budget):
        return self.timed

    def decide(self, artifact, context):
        return Nothing()

    def apply(self, artifact, decision):
        return artifact


@pytest.fixture
def context(tmp_path):
    split = Split((torch.zeros(4, 1),), torch.zeros(4, dtype=torch.int64))
    return Context(
        step="toy",
        device=Device(name="test", summary="", runtime="none", threads=1, opset=18),
        task=Classification(),
        data=Splits(split, split, split, split, fingerprint="0"),
        teacher=nn.Linear(1, 2),
        budget=Budget(macs=60000, size_mb=1),
        seed=0,
        work=tmp_path,
        cache=tmp_path,
        emit=silent,
        teacher_cost=lambda: COST,
        forecasts=lambda artifacts: [COST for _ in artifacts],
    )


def test_every_field_of_the_context_is_in_the_key_or_harmless_or_declared():
    kinds = (IN_KEY, HARMLESS, frozenset(DECLARED))
    assert set.union(*map(set, kinds)) == {field.name for field in fields(Context)}
    assert sum(map(len, kinds)) == len(fields(Context))


WAYS = {
    "attribute": lambda c: c.budget.macs,
    "getattr": lambda c: getattr(c.budget, "macs"),  # noqa: B009
    "a part of the step": lambda c: c.named("part").budget.macs,
    "a replaced context": lambda c: replace(c, emit=silent).budget.macs,
    "a limit that is absent": lambda c: c.budget.latency_ms,
    "within": lambda c: within(COST, c.budget, c.teacher_cost, 0.1),
    "dump": lambda c: c.budget.model_dump(),
    "dump of one field": lambda c: c.budget.model_dump(include={"macs"}),
    "json": lambda c: c.budget.model_dump_json(),
    "iteration": lambda c: dict(c.budget),
    "vars": lambda c: vars(c.budget),
    "copy": lambda c: copy.copy(c.budget),
    "deep copy": lambda c: copy.deepcopy(c.budget),
    "model_copy": lambda c: c.budget.model_copy(update={"macs": None}),
    "comparison": lambda c: c.budget == Budget(),
    "reflected comparison": lambda c: Budget() == c.budget,
    "hash": lambda c: hash(c.budget),
    "text": lambda c: str(c.budget),
    "to another process": lambda c: pickle.dumps(c.budget),
    "a thread": lambda c: ThreadPoolExecutor(1).submit(lambda: c.budget.macs).result(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_field_of_the_budget_is_read_only_where_it_is_declared(context, way):
    seen, reads = watched(context, Toy())
    with pytest.raises(LawError, match=r"Toy reads budget\.\w+.*\n  → return '\w+'"):
        WAYS[way](seen)
    with pytest.raises(LawError):  # even where the pass caught it
        reads.check()
    seen, reads = watched(context, Toy(declared=ALL))
    WAYS[way](seen)
    reads.check()
    assert reads.budget


def test_a_watched_budget_is_a_budget_with_the_same_values(context):
    seen, reads = watched(context, Toy(declared=("macs",)))
    assert isinstance(seen.budget, Budget)
    assert seen.budget.macs == 60000
    assert reads.budget == {"macs"}
    with pytest.raises(LawError, match=r"budget\.size_mb"):
        _ = seen.budget.size_mb
    seen, _ = watched(context, Toy(declared=ALL))
    plain = context.budget
    assert (seen.budget, hash(seen.budget), str(seen.budget)) == (plain, hash(plain), str(plain))
    assert seen.budget != Budget()
    assert seen.budget.model_dump_json() == plain.model_dump_json()
    sent = pickle.loads(pickle.dumps(seen.budget))
    assert (type(sent), sent) == (Budget, plain)


@pytest.mark.parametrize("ask", [lambda c: c.forecast(None), lambda c: c.forecasts([]), lambda c: c.teacher_cost()])
def test_a_measurement_is_asked_for_only_where_it_is_declared(context, ask):
    for one in (watched(context, Toy()), watched(replace(context, step="other"), Toy())):
        with pytest.raises(LawError, match=r"Toy asks for context\.(forecasts|teacher_cost), and its measures\(\) is"):
            ask(one[0].named("part"))
        with pytest.raises(LawError):
            one[1].check()
    seen, reads = watched(context, Toy(timed=True))
    ask(seen)
    reads.check()
    assert reads.measured


LOOKS = {
    "labels": lambda data: data.test.labels,
    "inputs": lambda data: data.test.inputs,
    "length": lambda data: len(data.test),
    "some": lambda data: data.test[:2],
    "batches": lambda data: list(data.test.batches(2)),
    "by name": lambda data: getattr(data, "test").labels,  # noqa: B009
}


@pytest.mark.parametrize("look", LOOKS)
def test_no_pass_sees_the_test_split(context, look):
    seen, _ = watched(context, Toy(declared=ALL, timed=True))
    few = replace(seen.data, train=seen.data.train[:2])  # to hand the splits on is not to look
    assert len(few.train) == 2
    with pytest.raises(LawError, match=r"reads context\.data\.test"):
        LOOKS[look](few)
    assert len(context.data.test) == 4


def test_a_declared_field_that_is_none_of_the_budgets_is_told():
    assert budget_parts(Toy(declared=("macs", "latency_ms_cold")), Budget(macs=2)) == {
        "macs": 2,
        "latency_ms@cold": None,
    }
    with pytest.raises(LawError, match=r"Toy.reads\(\) names \['mac'\]"):
        budget_parts(Toy(declared=("mac",)), Budget())
