"""What competes: every objective that a recipe can name, without a list kept by hand."""

import pytest

from kdc.core.errors import UserError
from kdc.distill.feature_settings import Hints
from kdc.distill.logit_settings import Binary, Decoupled, SoftTargets
from kdc.distill.settings import HardLabels, Training
from kdc.driver.methods import CROSS_ENTROPY, PLAIN_KD, methods, objective_kinds, strategy_kinds


def by_name(**options):
    return {one.name: one for one in methods(Training(epochs=2), **options)}


def test_every_objective_of_the_settings_competes_and_the_labels_are_a_control():
    kinds = objective_kinds()
    assert {"kd", "dkd", "taid", "hints", "ofa"} <= kinds.keys()
    assert "labels" not in kinds
    assert by_name().keys() >= kinds.keys() | {CROSS_ENTROPY}


def test_the_controls_are_what_they_say():
    found = by_name(kinds=())
    assert found[CROSS_ENTROPY].training.objectives == (HardLabels(weight=1.0),)
    assert found[PLAIN_KD].training.objectives == (HardLabels(weight=0.1), SoftTargets(weight=0.9, temperature=4.0))
    assert {one.teacher for one in found.values() if one.training.objectives == found[PLAIN_KD].training.objectives} == {
        "own", "random", "truncated",
    }  # fmt: skip
    assert {one.role for one in found.values()} == {"control"}


def test_beside_each_objective_stand_the_labels_or_plain_kd():
    assert by_name(kinds=["hints"])["hints"].training.objectives == (HardLabels(weight=0.1), Hints())
    both = by_name(kinds=["hints"], beside="kd")["kd + hints"]
    assert both.training.objectives == (HardLabels(weight=0.1), SoftTargets(), Hints())


def test_each_strategy_and_each_transform_stands_beside_plain_kd():
    found = by_name(kinds=["strategies"])
    of_role = {name: one for name, one in found.items() if one.role == "strategy"}
    assert of_role.keys() == strategy_kinds().keys() >= {"ps-kd", "mixup", "orc", "crops"}
    for name, one in of_role.items():
        (part,) = (*one.training.strategies, *one.training.transforms)
        assert part.kind == name
        assert one.training.objectives == found[PLAIN_KD].training.objectives
    assert by_name(kinds=["hints", "mixup"])["mixup"].training == of_role["mixup"].training


def test_a_loss_that_sees_logits_class_by_class_stands_alone():
    assert by_name(kinds=["bckd"], beside="kd")["bckd"].training.objectives == (Binary(),)


def test_all_methods_share_the_rest_of_the_training():
    base = Training(epochs=7, batch=16, learning_rate=1e-2)
    for one in methods(base):
        if one.training is not None:
            assert one.training.model_copy(update={"objectives": base.objectives}) == base


def test_a_factor_multiplies_every_weight_but_the_labels():
    one = by_name(kinds=["dkd"])["dkd"]
    assert one.weighted(10).objectives == (HardLabels(weight=0.1), Decoupled(weight=10.0))
    assert not by_name(kinds=())[CROSS_ENTROPY].tunable
    assert not by_name(kinds=["bckd"])["bckd"].tunable


def test_a_pipeline_is_any_keys_of_a_training():
    keys = {"objectives": [{"kind": "kd"}, {"kind": "hints"}], "views": 1}
    one = by_name(kinds=(), pipelines={"mine": keys})["mine"]
    assert one.training.objectives == (SoftTargets(), Hints())
    assert one.training.views == 1
    assert one.training.epochs == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ["squash"]}, "no objective or strategy 'squash'"),
        ({"pipelines": {"mine": {"objectives": [{"kind": "squash"}]}}}, "pipeline 'mine': objectives"),
        ({"pipelines": {"kd": {"views": 1}}}, "two methods are called 'kd'"),
    ],
)
def test_what_is_no_method_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        methods(Training(), **options)
