"""The report's row under attack: there where a training has an attack, what `robust_scores` gives, and kept."""

import json

import numpy as np
import pytest
import torch

from kdc.cli.table import show
from kdc.core.data import Split
from kdc.distill.attack import Bounds, drawn, robust_scores
from kdc.distill.strategy_settings.adversarial import Attack
from kdc.driver import robustness as module
from kdc.driver.check import rebuild
from kdc.driver.compress import compress
from kdc.driver.inputs import load
from kdc.driver.plan import make
from kdc.driver.recipe import load_recipe
from kdc.driver.report import Report
from kdc.driver.robustness import strongest
from passes import PASSES
from targets.device import load_device
from tests.conftest import DATA, RECIPE, TEACHER

ATTACK = "{epsilon: 0.08, step: 0.02, steps: 6}"
TRAINING = "epochs: 6, batch: 32, objectives: [{kind: labels, weight: 1}]"
HARDENED = f"{{{TRAINING}, strategies: [{{kind: adversarial, attack: {ATTACK}}}]}}"


def recipe(folder, passes: str):
    return load_recipe(folder / "recipe.yaml", {}, [f"passes={passes}"], PASSES)


def project(folder, weights):
    for name, text in (("teacher.py", TEACHER), ("data.py", DATA), ("recipe.yaml", RECIPE)):
        (folder / name).write_text(text)
    (folder / "teacher.safetensors").write_bytes(weights.read_bytes())
    return folder


def planned(folder, passes: str):
    return make(recipe(folder, passes).passes, load_device("cpu-ort")).compress


def test_the_attack_is_the_one_with_the_largest_epsilon_then_with_most_steps(shapes):
    def training(*attacks: str) -> str:
        strategies = ", ".join(
            f"{{kind: {kind}, attack: {{{text}}}}}" for kind, text in (a.split("=") for a in attacks)
        )
        return f"{{training: {{strategies: [{strategies}]}}}}"

    weak, strong = "ltd=epsilon: 0.02, steps: 40", "ltd=epsilon: 0.1, steps: 3"
    longer, same = "adversarial=epsilon: 0.1, steps: 9", "ltd=epsilon: 0.1, steps: 9"
    found = strongest(planned(shapes, f"[{{prune: {training(weak)}}}, {{distill: {training(strong)}}}]"))
    assert (found.label, found.strategy, found.attack) == ("distill", "ltd", Attack(epsilon=0.1, steps=3))
    both = f"[{{distill: {training(strong)}}}, {{distill: {training(longer)}}}, {{distill: {training(same)}}}]"
    assert strongest(planned(shapes, both)) == ("distill.2", "adversarial", Attack(epsilon=0.1, steps=9))
    inside = f"[{{distill: {{stages: [{HARDENED}]}}}}]"  # any training of a pass counts
    assert strongest(planned(shapes, inside)).attack == Attack(epsilon=0.08, step=0.02, steps=6)
    assert strongest(planned(shapes, "[prune, distill, quantize]")) is None


def test_of_more_samples_than_are_attacked_the_same_are_drawn_for_every_model():
    split = Split((torch.arange(50.0).reshape(50, 1),), torch.arange(50))
    assert drawn(split, 50, 0) is split
    some = drawn(split, 20, 0)
    assert len(some) == 20
    assert torch.equal(some.inputs[0][:, 0].long(), some.labels)
    assert torch.equal(drawn(split, 20, 0).labels, some.labels)
    assert not torch.equal(drawn(split, 20, 1).labels, some.labels)
    assert len(set(some.labels.tolist())) == 20
    assert some.labels.max() >= 20  # not the first, which may be of one class


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shapes_weights):
    """A student trained on adversarial examples, then quantized, which is what ships."""
    folder = project(tmp_path_factory.mktemp("robust"), shapes_weights)
    made = recipe(
        folder, f"[{{prune: {{keep_macs: 0.5, alignment: 4, training: {HARDENED}}}}}, {{quantize: {{qat: never}}}}]"
    )
    return made, folder / "run", compress(made, folder / "run")


@pytest.mark.slow
def test_the_numbers_are_those_of_the_attack_by_hand(finished):
    made, out, report = finished
    inputs, attack = load(made), made.passes[0].training.strategies[0].attack
    bounds = Bounds.of(inputs.data.train, attack)
    rows = {"teacher": inputs.teacher.model, "student": rebuild(out, inputs).model}
    for name, model in rows.items():
        scores = robust_scores(model, inputs.data.test, inputs.task, attack, bounds, made.seed)
        assert getattr(report.robustness, name).points == pytest.approx(100 * np.mean(scores))
    (shipped,) = (step.name for step in report.steps if step.selected)
    assert report.robustness.after == shipped
    assert (report.robustness.strategy, report.robustness.trained) == ("adversarial", "prune")
    assert report.robustness.samples == report.robustness.of == len(inputs.data.test)
    assert report.robustness.attack == attack


@pytest.mark.slow
def test_a_student_that_was_trained_for_it_stands_the_attack_better_than_its_teacher(finished):
    _, _, report = finished
    assert report.robustness.teacher.points < report.teacher.metric.points - 10
    assert report.robustness.student.points > report.robustness.teacher.points + 10


@pytest.mark.slow
def test_the_report_and_the_table_have_the_row_and_say_what_was_done(finished, capsys):
    _, out, report = finished
    assert Report.model_validate_json((out / "report.json").read_text()) == report
    assert json.loads((out / "report.json").read_text())["robustness"]["student"]["name"] == "robust accuracy"
    show(report, out)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line for line in lines if line.startswith("robust accuracy, %"))
    assert f"{report.robustness.teacher.points:.2f}" in row
    assert f"{report.robustness.student.points:.2f}" in row
    said = " ".join(" ".join(lines).split())
    assert "robust accuracy: under the attack of adversarial in prune" in said
    assert (
        f"0.08 of its range in 6 steps, by gradients of the PyTorch models (the student's after {report.robustness.after})"
        in said
    )
    assert "90 of 90 samples of the test split" in said


@pytest.mark.slow
def test_an_attack_that_is_done_is_not_run_again_and_a_killed_one_goes_on_behind_the_teacher(finished, monkeypatch):
    made, out, report = finished
    attacked = []

    def killed(model, *rest, **options):
        attacked.append(model)
        if len(attacked) == 2:
            raise KeyboardInterrupt
        return robust_scores(model, *rest, **options)

    monkeypatch.setattr(module, "robust_scores", killed)
    assert compress(made, out).robustness == report.robustness
    assert attacked == []
    monkeypatch.setattr(module, "SAMPLES", 40)
    with pytest.raises(KeyboardInterrupt):
        compress(made, out)
    fewer = compress(made, out).robustness
    assert len(attacked) == 3  # the teacher, the student that was broken off, and the student again
    assert (fewer.samples, fewer.of) == (40, 90)


@pytest.mark.slow
def test_without_an_attack_there_is_no_row_and_nothing_is_run(shapes, tmp_path, monkeypatch, capsys):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("no strategy of the recipe has an attack")

    monkeypatch.setattr(module, "robust_scores", never)
    report = compress(recipe(shapes, "[{quantize: {qat: never}}]"), tmp_path / "run")
    assert report.robustness is None
    assert not [*(tmp_path / "run").rglob("*+robust-*")]
    show(report, tmp_path / "run")
    assert "robust" not in capsys.readouterr().out
