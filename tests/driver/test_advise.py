"""Advice follows the evidence that is near, says how much it is, and claims nothing without."""

import math

import pytest

from kdc.core.errors import UserError
from kdc.distill.settings import Training
from kdc.driver.advise import advise
from kdc.driver.evidence import Evidence, distance, read, shipped
from kdc.driver.methods import CROSS_ENTROPY, PLAIN_KD
from kdc.driver.standings import TEST, VALIDATION, Choice, Comparison, Figure, Leaderboard, Row
from kdc.driver.traits import Traits

KD = ({"kind": "labels", "weight": 0.1}, {"kind": "kd", "weight": 0.9, "temperature": 4.0})
DKD = ({"kind": "labels", "weight": 0.1}, {"kind": "dkd", "weight": 2.0, "temperature": 4.0, "alpha": 1.0, "beta": 8.0})
TRAITS = Traits(
    task="classification", classes=10, train_samples=1000, sample_size=64, family="convolutional",
    teacher_train_points=100.0, teacher_points=98.0, teacher_entropy=0.05, teacher_macs=10**8, student_macs=3 * 10**6,
    student_parameters=10**4,
)  # fmt: skip


def against(points, verdict):
    return Comparison(points=points, low=points - 1, high=points + 1, p_value=0.001, p_holm=0.01, verdict=verdict)


def board(name="digits", traits=TRAITS, gain=1.5, verdict="better", objectives=DKD):
    def figures(points):
        whole = Figure(points=points, low=points - 1, high=points + 1, by_seed=(points, points))
        return {VALIDATION: whole, TEST: whole}

    rows = (
        Row(name=CROSS_ENTROPY, role="control", objectives=({"kind": "labels", "weight": 1.0},), figures=figures(90.0)),
        Row(name=PLAIN_KD, role="control", objectives=KD, figures=figures(92.0)),
        Row(
            name="dkd", role="objective", objectives=objectives, figures=figures(92.0 + gain),
            against={PLAIN_KD: against(gain, verdict)},
        ),
    )  # fmt: skip
    return Leaderboard(
        name=name, metric="accuracy", traits=traits, seeds=(0, 1, 2, 3, 4), options={}, rows=rows, seconds=1.0,
        training={"epochs": 60, "batch": 32, "learning_rate": 0.01},
        choice=Choice(name="dkd", against={PLAIN_KD: against(gain, verdict)}),
    )  # fmt: skip


def evidence(*boards):
    return [Evidence(f"{one.name}.json", one) for one in boards]


def test_the_distance_is_the_decades_of_the_trait_that_differs_most():
    assert distance(TRAITS, TRAITS).decades == 0
    more = TRAITS.model_copy(update={"train_samples": 5000, "classes": 20})
    assert distance(TRAITS, more).decades == pytest.approx(math.log10(2.5))
    assert distance(TRAITS, more) == distance(more, TRAITS)
    assert str(distance(TRAITS, more)) == "differs most in samples per class, by 2.5 times"
    transformer = TRAITS.model_copy(update={"family": "transformer"})
    assert distance(TRAITS, transformer).decades == math.inf
    assert str(distance(TRAITS, transformer)) == "another family"


def test_what_is_shown_better_near_the_task_is_advised_with_its_schedule():
    found = advise(TRAITS, evidence(board()))
    assert (found.method, found.shown) == ("dkd", True)
    assert found.gain == pytest.approx(1.5)
    training = Training.model_validate(found.training)  # it can be pasted
    assert [one.kind for one in training.objectives] == ["labels", "dkd"]
    assert training.objectives[1].weight == 2.0
    assert (training.epochs, training.batch, training.learning_rate) == (60, 32, 0.01)


def test_what_is_not_shown_better_does_not_take_plain_kds_place():
    found = advise(TRAITS, evidence(board(verdict="no difference shown")))
    assert (found.method, found.shown) == (PLAIN_KD, False)
    assert [one["kind"] for one in found.training["objectives"]] == ["labels", "kd"]


@pytest.mark.parametrize("change", [{"family": "transformer"}, {"train_samples": 11000}, {"task": "detection"}])
def test_nothing_is_claimed_without_evidence_near(change):
    found = advise(TRAITS.model_copy(update=change), evidence(board()))
    assert found.method is None
    assert found.training == {}
    assert not found.witnesses[0].near
    assert advise(TRAITS, []).method is None


def test_nearer_evidence_counts_more():
    far = TRAITS.model_copy(update={"train_samples": 8000})
    close = advise(TRAITS, evidence(board(gain=2.0), board("other", far, gain=1.0)))
    assert 1.8 < close.gain < 2.0
    assert [witness.name for witness in close.witnesses] == ["digits", "other"]
    assert advise(far, evidence(board(gain=2.0), board("other", far, gain=1.0))).gain < 1.2


def test_a_method_that_this_version_does_not_know_is_not_advised():
    unknown = ({"kind": "labels", "weight": 0.1}, {"kind": "squash", "weight": 1.0})
    assert advise(TRAITS, evidence(board(objectives=unknown))).method == PLAIN_KD


def test_every_leaderboard_that_ships_can_be_read_and_used():
    for one in shipped():
        assert advise(one.board.traits, [one]).method is not None


def test_what_is_no_leaderboard_is_told(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    for path in (tmp_path / "x.json", tmp_path / "none.json"):
        with pytest.raises(UserError, match="is no leaderboard"):
            read([path])
