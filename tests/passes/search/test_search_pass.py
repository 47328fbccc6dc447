"""The search as a whole, on toys: what fits is found, what is known is written down, what is wrong is told."""

import dataclasses
import json
import math
import re

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.budget import Budget, Cost
from kdc.core.contract import FINDINGS, Context
from kdc.core.data import Split, Splits
from kdc.core.deadline import Deadline
from kdc.core.device import Device
from kdc.core.errors import ModelError
from kdc.core.observe import Note
from kdc.core.spec import TensorSpec
from kdc.distill.settings import Training
from kdc.tasks.classification import Classification
from passes.search import Search
from passes.search import judge as judging
from passes.search.journal import Candidate, Journal, front
from passes.search.members import Members
from passes.search.spaces import OwnSpace, PlainLayer, PlainSpace, PlainStudent, key

SPACE = PlainSpace(depth=(1, 3), channels=(4, 8), reductions=(0, 2))
SHORT = Training(epochs=1, batch=32)
TINY = {"spaces": (SPACE,), "population": 4, "generations": 1, "finalists": 2, "training": SHORT}


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, image):
        return self.head(self.layers(image).mean((2, 3)))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    image = TensorSpec(name="image", shape=("batch", 1, 8, 8))
    logits = TensorSpec(name="logits", shape=("batch", 3))
    return Artifact(Teacher().eval(), (image,), (logits,))


@pytest.fixture
def context_of(tmp_path, teacher):
    generator = torch.Generator().manual_seed(1)
    split = Split((torch.randn(96, 1, 8, 8, generator=generator),), torch.randint(3, (96,), generator=generator))

    def make(budget=None, ms=None, name="0", teacher=teacher, events=None):
        """`ms`: what a model takes, from its MACs; None: nothing may be timed."""
        work = tmp_path / name
        work.mkdir(exist_ok=True)
        seen = [] if events is None else events

        def forecasts(artifacts):
            assert ms is not None, "nothing is timed without a limit on time or size"
            members = Members(teacher, (SPACE,), 0)
            sizes = [members.size(artifact.model) for artifact in artifacts]
            return [Cost(latency_ms=ms(m), size_mb=1e-3, macs=m, parameters=p) for p, m in sizes]

        return Context(
            step="search", device=Device(name="t", summary="", runtime="none", threads=1, opset=21),
            task=Classification(), data=Splits(split, split, split, split, fingerprint="0"), teacher=teacher.model,
            budget=budget or Budget(), seed=0, work=work, cache=tmp_path, emit=seen.append,
            teacher_cost=lambda: Cost(latency_ms=1.0, size_mb=1.0, macs=1e6, parameters=1), forecasts=forecasts,
        )  # fmt: skip

    return make


def rows(context):
    return json.loads((context.work / "findings.json").read_text())["candidates"]


def test_what_is_found_fits_the_budget_and_is_the_best_of_its_round(teacher, context_of):
    context = context_of(Budget(macs=30_000))
    settings = Search(**TINY, keep_macs=None, headroom=0.0)
    decision = settings.decide(teacher, context)
    found = rows(context)
    (chosen,) = [row for row in found if row["chosen"]]
    assert chosen["student"] == decision.student.model_dump(mode="json")
    assert chosen["macs"] <= 30_000
    judged = [row for row in found if row["points"]]
    assert len(judged) == 2
    assert chosen["points"][0] == max(row["points"][0] for row in judged)


def test_nothing_that_does_not_fit_is_ever_trained(teacher, context_of):
    context = context_of(Budget(latency_ms=0.03), ms=lambda macs: macs / 1e6)
    Search(**TINY).decide(teacher, context)
    found = rows(context)
    assert any(not row["fits"] for row in found)
    assert all(row["fits"] for row in found if row["points"])
    assert all(row["latency_ms"] <= 0.03 * 0.9 for row in found if row["fits"])


def test_two_searches_of_one_seed_decide_alike_and_a_killed_one_goes_on(teacher, context_of):
    budget, settings = Budget(macs=40_000), Search(**TINY)
    whole = settings.decide(teacher, context_of(budget, name="whole"))
    stopped = context_of(budget, name="stopped")
    lines = (context_of(budget, name="whole").work / "candidates.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):  # as a kill leaves it, the last line cut off
        (stopped.work / "candidates.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        for file in stopped.work.glob("*.safetensors"):
            file.unlink()
        for file in context_of(budget, name="whole").work.glob("????????????.safetensors"):
            (stopped.work / file.name).write_bytes(file.read_bytes())
        assert settings.decide(teacher, stopped) == whole
        assert rows(stopped) == rows(context_of(budget, name="whole"))


def test_the_students_first_weights_belong_to_the_decision(teacher, context_of):
    decision = Search(**TINY).decide(teacher, context_of(Budget(macs=40_000)))
    first, second = (Search().apply(teacher, decision).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_students_training_goes_on_from_the_short_distillations(teacher, context_of):
    context = context_of(Budget(macs=40_000))
    settings = Search(**{**TINY, "training": SHORT.model_copy(update={"epochs": 1})})
    decision = settings.decide(teacher, context)
    none = settings.model_copy(update={"training": SHORT.model_copy(update={"epochs": 0})})
    begun = settings.apply(teacher, decision)
    fresh = {name: tensor.clone() for name, tensor in begun.model.state_dict().items()}
    gone_on = none.tune(begun, context).model.state_dict()
    assert any(not torch.equal(fresh[name], gone_on[name]) for name in fresh)


def test_a_structure_named_by_hand_is_taken_as_it_is(teacher, context_of):
    student = PlainStudent(layers=(PlainLayer(channels=5, stride=2),))
    settings = Search(**TINY, student=student)
    assert not settings.measures(Budget(latency_ms=1))
    decision = settings.decide(teacher, context_of(Budget(latency_ms=1e-9)))
    assert decision.student == student
    assert settings.apply(teacher, decision).model.layers[0][0].weight.shape == (5, 1, 3, 3)


@pytest.mark.parametrize(
    ("budget", "ms", "said"),
    [
        ({"macs": 100}, None, r"macs is \d+.*, the limit 100"),
        ({"latency_ms": 1e-6}, 1.0, r"latency_ms is 1, the limit 1e-06"),
        ({"min_speedup": 1e6}, 1.0, r"latency_ms for min_speedup 1e\+06 is 1"),
    ],
    ids=["macs", "latency", "speedup"],
)
def test_a_budget_below_the_smallest_member_takes_that_member_and_says_so(teacher, context_of, budget, ms, said):
    events = []
    context = context_of(Budget(**budget), **({} if ms is None else {"ms": lambda macs: ms}))
    context = dataclasses.replace(context, emit=events.append)
    decision = Search(**TINY).decide(teacher, context)
    (text,) = [event.text for event in events if isinstance(event, Note) and "no student of these spaces" in event.text]
    assert re.search(said, text)
    assert json.loads((context.work / FINDINGS).read_text())["nearest"] in text
    smallest = Members(teacher, TINY["spaces"], context.seed).smallest()
    assert decision.student in smallest
    (row,) = [row for row in rows(context) if row["chosen"]]
    assert not row["fits"]
    Search(**TINY).apply(teacher, decision).model(torch.zeros(2, *teacher.inputs[0].shape[1:]))


def test_of_several_smallest_members_the_one_that_misses_the_limits_by_the_least_is_taken(teacher, context_of):
    spaces = (PlainSpace(depth=(4, 6), channels=(32,)), *TINY["spaces"])
    settings = Search(**{**TINY, "spaces": spaces})
    decision = settings.decide(teacher, context_of(Budget(macs=100)))
    members = Members(teacher, spaces, 0)
    assert min(members.smallest(), key=lambda one: members.size(members.build(one))[1]) == decision.student


def limited(context, seconds, at):
    return dataclasses.replace(context, deadline=Deadline(lambda: seconds[0], at, 1.0, context.work))


def test_a_search_without_time_takes_what_it_has_and_another_process_comes_to_the_same(teacher, context_of):
    budget, seconds = Budget(macs=40_000), [100.0]
    context = limited(context_of(budget), seconds, 50.0)
    decision = Search(**TINY).decide(teacher, context)
    assert any("the search looked at" in text for text in context.deadline.given_up().values())
    assert all(not row["points"] for row in rows(context))
    follower = dataclasses.replace(context, deadline=Deadline(lambda: 0.0, math.inf, 1.0, context.work))
    assert Search(**TINY).decide(teacher, follower) == decision


def test_a_search_whose_time_ends_in_a_round_chooses_among_those_it_distilled(teacher, context_of, monkeypatch):
    seconds, distilled = [0.0], []
    context = limited(context_of(Budget(macs=40_000)), seconds, 90.0)

    def one_takes_all(candidate, *rest):
        distilled.append(candidate.key)
        seconds[0] = 90.0
        return candidate.model_copy(update={"points": (50.0,)})

    monkeypatch.setattr(judging, "_distilled", one_takes_all)
    decision = Search(**{**TINY, "finalists": 4, "population": 4}).decide(teacher, context)
    assert len(distilled) == 1
    assert key(decision.student) == distilled[0]
    told = " ".join(context.deadline.given_up().values())
    assert "1 of 4 candidates in round 1" in told


def test_a_limit_that_is_far_away_changes_no_decision(teacher, context_of):
    budget = Budget(macs=40_000)
    free = Search(**TINY).decide(teacher, context_of(budget, name="free"))
    wide = limited(context_of(budget, name="wide"), [0.0], 1e6)
    assert Search(**TINY).decide(teacher, wide) == free
    assert rows(wide) == rows(context_of(budget, name="free"))
    assert wide.deadline.given_up() == {}


def test_candidates_that_fail_are_told_and_more_than_half_of_them_end_the_search(tmp_path, teacher, context_of):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\ndef build(width):\n"
        "    if width in BAD:\n        raise ValueError(f'no width {width}')\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))\n"
    )
    text = (tmp_path / "own.py").read_text()
    space = OwnSpace(build=f"{tmp_path}/own.py:build", choices={"width": (2, 3, 4, 5, 6)})
    settings = Search(**{**TINY, "spaces": (space,), "population": 5})
    (tmp_path / "own.py").write_text("BAD = (3,)\n" + text)
    context = context_of(Budget(macs=1e6))
    settings.decide(teacher, context)
    failed = [row for row in rows(context) if row["failure"]]
    assert len(failed) == 1
    assert "no width 3" in failed[0]["failure"]
    (tmp_path / "more.py").write_text("BAD = (3, 4, 5)\n" + text)
    worse = space.model_copy(update={"build": f"{tmp_path}/more.py:build"})
    with pytest.raises(ModelError, match=r"of \d candidates failed.*no width"):
        settings.model_copy(update={"spaces": (worse,)}).decide(teacher, context_of(Budget(macs=1e6), name="1"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"spaces": ()}, "at least one space"),
        ({"spaces": ({"family": "plain", "depth": (6, 3)},)}, "depth: the least, 6, is above the most, 3"),
        ({"spaces": ({"family": "plain", "channels": ()},)}, "channels: expected at least one choice"),
        ({"population": 4, "finalists": 8}, "finalists, 8, are more than the population, 4"),
    ],
)
def test_an_empty_space_and_settings_that_contradict_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        Search.model_validate(settings)


def test_no_other_candidate_of_the_front_is_cheaper_and_better():
    def candidate(channels, macs, *points):
        student = PlainStudent(layers=(PlainLayer(channels=channels),))
        return Candidate(student=student, macs=macs, fits=True, points=points)

    cheap, good, beaten, left = (
        candidate(1, 10, 80.0, 85.0), candidate(2, 20, 90.0, 95.0), candidate(3, 30, 89.0), candidate(4, 5, 60.0),
    )  # fmt: skip
    assert front([cheap, good, beaten, left]) == {cheap.key, good.key, left.key}


def test_the_journal_keeps_whole_lines_and_drops_what_a_kill_cut_off(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    one, two = (Candidate(student=PlainStudent(layers=(PlainLayer(channels=c),))) for c in (1, 2))
    journal.put(one)
    journal.put(two)
    path = tmp_path / "j.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = Journal(path)
    assert again.all() == [one]
    again.put(two)
    assert Journal(path).all() == [one, two]
