"""TorchScript is refused with the reason, but for a file that is only asked and that the user allows."""

import warnings

import pytest
import torch
from running_cases import copy_case
from torch import nn

from kdc.core.errors import ModelError
from kdc.core.weights import load_weights
from kdc.distill.scripted import refuse_scripted
from kdc.driver.inputs import read
from kdc.driver.recipe import load_recipe
from passes import PASSES


def scripted(kind="script"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if kind == "script":
            return torch.jit.script(nn.Linear(3, 2))
        return torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3))


class Holding(nn.Module):
    def __init__(self, where):
        super().__init__()
        if where == "list":
            self.held = [nn.ReLU(), scripted()]
        elif where == "mapping":
            self.held = {"a": (1, scripted())}
        else:
            self.held = nn.ModuleList([nn.Sequential(nn.ReLU(), scripted())])


@pytest.mark.parametrize("kind", ["script", "trace"])
def test_a_scripted_module_is_refused(kind):
    with pytest.raises(ModelError, match="it is TorchScript, which can write files when it is called"):
        refuse_scripted(scripted(kind), "teacher t")


@pytest.mark.parametrize(
    ("where", "name"), [("list", r"held\[1\]"), ("mapping", r"held\['a'\]\[1\]"), ("modules", r"held\.0\.1")]
)
def test_one_inside_a_module_is_named(where, name):
    with pytest.raises(ModelError, match=f"{name} in it is TorchScript"):
        refuse_scripted(Holding(where), "teacher t")


def test_a_module_without_one_is_let_be():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model.itself = [model]  # a circle
    refuse_scripted(model, "teacher t")


@pytest.mark.parametrize("name", ["w.pt", "w.pth"])
def test_a_weights_file_that_is_torchscript_is_refused(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(scripted(), tmp_path / name)
    with pytest.raises(ModelError, match="TorchScript|plain tensors"):
        load_weights(nn.Linear(3, 2), tmp_path / name)


TEACHERS = "training: {epochs: 1, teachers: [{torchscript: other.ts}]}"
PLACES = {
    "of a training": f"- distill: {{{TEACHERS}}}",
    "of one with several": "- distill: {training: {epochs: 1, teachers: [own, {torchscript: other.ts}], "
    "strategies: [{kind: combined-teachers}]}}",
    "of a pruning's training": f"- prune: {{keep_macs: 0.5, {TEACHERS}}}",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_file_in_a_recipe_is_refused_when_it_is_read_unless_it_is_allowed(tmp_path, monkeypatch, place):
    folder = copy_case("plain", tmp_path)
    monkeypatch.chdir(folder)
    head = (folder / "recipe.yaml").read_text().partition("passes:")[0]
    (folder / "recipe.yaml").write_text(f"{head}passes:\n  {PLACES[place]}\n")
    (folder / "other.ts").touch()
    recipe = load_recipe(folder / "recipe.yaml", {}, [], PASSES)
    with pytest.raises(ModelError, match=r"(?s)other\.ts: .*can write files.*--allow-torchscript"):
        read(recipe)
    assert read(recipe, allow_torchscript=True).allow_torchscript
