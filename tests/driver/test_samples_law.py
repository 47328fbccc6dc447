"""The samples stay as they are through every step; a step after which they do not is named."""

from dataclasses import replace

import pytest
from running_cases import copy_case

from kdc.core.errors import LawError
from kdc.core.observe import silent
from kdc.core.store import Store
from kdc.distill.input_copies import copies_inputs
from kdc.driver.inputs import load
from kdc.driver.plan import make
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Steps
from passes import PASSES
from passes.prune import Prune


def step(folder, tmp_path, **changes):
    """The first step of a case's recipe, untrained: the law's error, or nothing."""
    settings = ["passes.0.training.epochs=0", "passes.0.importance=magnitude"]
    inputs = load(load_recipe(folder / "recipe.yaml", {}, settings, PASSES))
    steps = Steps(inputs, Store(tmp_path / "store"), silent)
    planned = make(inputs.recipe.passes, inputs.device).compress[0]
    context = steps.context(planned.label, "key", lambda _: [], lambda: None)
    before = inputs.data.digest()
    steps.make(planned, inputs.teacher, replace(context, **changes))
    assert inputs.data.digest() == before
    return inputs


@pytest.mark.parametrize("verb", ["decide", "apply", "tune"])
def test_a_step_that_changes_the_samples_is_named(tmp_path, monkeypatch, verb):
    folder = copy_case("plain", tmp_path)
    monkeypatch.chdir(folder)
    inputs = load(load_recipe(folder / "recipe.yaml", {}, [], PASSES))
    own = getattr(Prune, verb)

    def changing(self, artifact, *rest):
        for context in rest:
            data = getattr(context, "data", inputs.data)
            data.validation.inputs[0][3, 0, 1, 2] += 1
        return own(self, artifact, *rest)

    monkeypatch.setattr("kdc.driver.inputs.completed", lambda *_: inputs.data)
    monkeypatch.setattr(Prune, verb, changing)
    with pytest.raises(LawError, match="prune: the samples were changed in memory while the step ran"):
        step(folder, tmp_path)


def test_a_forward_that_writes_into_its_inputs_leaves_them_through_a_step(tmp_path, monkeypatch):
    folder = copy_case("inplace_input", tmp_path)
    monkeypatch.chdir(folder)
    inputs = step(folder, tmp_path)
    assert copies_inputs(inputs.teacher.model)
