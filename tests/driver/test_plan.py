"""The contracts are folded before anything is computed."""

import itertools

import pytest

from kdc.core.contract import Fact
from kdc.core.errors import PlanError
from kdc.driver.plan import make
from passes import PASSES, Build, Distill, Export, Prune, Quantize, Simplify
from targets.device import load_device

DEVICE = load_device("cpu-ort")


def test_the_default_list_ends_with_the_devices_file():
    plan = make(None, DEVICE)
    assert [p.label for p in plan.compress] == ["prune", "quantize"]
    assert [p.label for p in plan.lowering] == ["export", "simplify", "build"]
    assert Fact.DEVICE in plan.lowering[-1].facts


def test_a_target_without_integers_is_not_quantized_by_default():
    plan = make(None, DEVICE.model_copy(update={"quantization": None}))
    assert [p.label for p in plan.compress] == ["prune"]


def test_pruning_integers_is_refused_with_the_step_that_made_them():
    with pytest.raises(PlanError, match="step 2 prune needs 'float', which step 1 quantize removed"):
        make([Quantize(), Prune()], DEVICE)


def test_pruning_an_exported_model_is_refused():
    with pytest.raises(PlanError, match="step 2 prune needs 'torch', which step 1 export removed"):
        make([Export(), Prune()], DEVICE)


def test_building_without_an_export_is_refused():
    with pytest.raises(PlanError, match="step 1 build needs 'onnx', which no step before it provides"):
        make([Build()], DEVICE)


def test_a_pass_that_stands_twice_has_two_labels():
    assert [p.label for p in make([Prune(), Prune()], DEVICE).compress] == ["prune", "prune.2"]


@pytest.mark.parametrize(("first", "second"), itertools.product(PASSES.values(), repeat=2))
def test_every_ordered_pair_is_planned_or_refused_by_name(first, second):
    try:
        plan = make([first(), second()], DEVICE)
    except PlanError as error:
        assert "needs '" in str(error)
    else:
        assert Fact.DEVICE in plan.lowering[-1].facts


def test_simplify_before_export_is_refused():
    with pytest.raises(PlanError, match="simplify needs 'onnx'"):
        make([Simplify(), Distill()], DEVICE)
