"""The leaderboard of distillation: it finds what is there, keeps what is done, and hides nothing."""

import json
import subprocess
import sys

import numpy as np
import pytest

from kdc.core.errors import FolderError
from kdc.core.observe import Note
from kdc.distill.settings import Training
from kdc.driver import trials as trials_module
from kdc.driver.leaderboard import Options, _competing, base_training, leaderboard
from kdc.driver.methods import CROSS_ENTROPY, PLAIN_KD, RANDOM_TEACHER
from kdc.driver.recipe import load_recipe
from kdc.driver.standings import TEST, VALIDATION, Row, judged
from passes import PASSES

SMALL = Options(seeds=2, kinds=("dkd",), epochs=1, keep_macs=0.3, samples=96)


@pytest.fixture
def recipe(shapes):
    return load_recipe(shapes / "recipe.yaml", {}, [], PASSES)


def test_the_students_are_trained_as_the_recipes_own_student_is(recipe):
    assert base_training(recipe, None) == Training(epochs=3, batch=32)  # prune's, and not that of quantize behind it
    assert base_training(recipe, 7).epochs == 7
    assert base_training(recipe.model_copy(update={"passes": None}), None) == Training()


def test_each_trial_has_one_process_and_the_user_is_told(shapes):
    more = load_recipe(shapes / "recipe.yaml", {}, ["passes.0.training.processes=2"], PASSES)
    options = SMALL.model_copy(update={"pipelines": {"mine": {"processes": 3}}})
    notes: list[Note] = []
    found = _competing(more, options, notes.append)
    assert {method.training.processes for method in found if method.training is not None} == {1}
    assert base_training(more, None) == Training(epochs=3, batch=32)
    (note,) = notes
    assert "in one process here, and not in 3 (training.processes)" in note.text
    notes.clear()
    _competing(load_recipe(shapes / "recipe.yaml", {}, [], PASSES), SMALL, notes.append)
    assert notes == []


def drawn(generator, rate, seeds=5, samples=400):
    return (generator.random((seeds, samples)) < rate).astype(float)


def rows(*names):
    return [Row(name=name, role="control" if name in (PLAIN_KD, CROSS_ENTROPY) else "objective") for name in names]


def test_a_planted_better_method_is_found_and_an_equal_one_is_not():
    generator = np.random.default_rng(0)
    kd = {split: drawn(generator, 0.90) for split in (VALIDATION, TEST)}
    scores = {
        CROSS_ENTROPY: {split: kd[split] * drawn(generator, 0.95) for split in kd},
        PLAIN_KD: kd,
        "good": {split: np.maximum(kd[split], drawn(generator, 0.5)) for split in kd},
        "same": {split: np.where(drawn(generator, 0.02), drawn(generator, 0.9), kd[split]) for split in kd},
    }
    done, choice = judged(rows(*scores), scores)
    found = {row.name: row.against for row in done}
    assert found["good"][PLAIN_KD].verdict == "better"
    assert found["good"][CROSS_ENTROPY].verdict == "better"
    assert found["same"][PLAIN_KD].verdict == "no difference shown"
    assert found[CROSS_ENTROPY][PLAIN_KD].verdict == "worse"
    assert PLAIN_KD not in found[PLAIN_KD]
    assert choice.name == "good"
    assert choice.confirmed


def test_what_is_best_on_validation_alone_is_not_confirmed():
    generator = np.random.default_rng(1)
    kd = {split: drawn(generator, 0.90) for split in (VALIDATION, TEST)}
    lucky = {VALIDATION: np.maximum(kd[VALIDATION], drawn(generator, 0.5)), TEST: kd[TEST]}
    _, choice = judged(rows(PLAIN_KD, "lucky"), {PLAIN_KD: kd, "lucky": lucky})
    assert choice.name == "lucky"
    assert not choice.confirmed


def test_a_control_is_never_chosen_and_plain_kd_may_stay():
    generator = np.random.default_rng(2)
    scores = {
        name: {split: drawn(generator, rate) for split in (VALIDATION, TEST)}
        for name, rate in ((CROSS_ENTROPY, 0.99), (PLAIN_KD, 0.9), ("dkd", 0.5))
    }
    assert judged(rows(*scores), scores)[1].name == PLAIN_KD


def test_more_methods_ask_for_more_of_each():
    generator = np.random.default_rng(3)
    kd = {split: drawn(generator, 0.90) for split in (VALIDATION, TEST)}
    scores = {PLAIN_KD: kd} | {f"m{i}": {split: drawn(generator, 0.91) for split in kd} for i in range(20)}
    done, _ = judged(rows(*scores), scores)
    pairs = [(one.p_value, one.p_holm) for row in done for one in row.against.values()]
    assert min(holm for _, holm in pairs) == pytest.approx(min(1.0, 20 * min(p for p, _ in pairs)))


def test_a_run_shows_controls_and_what_does_not_apply(recipe, tmp_path):
    said = []
    options = SMALL.model_copy(update={"kinds": ("dkd", "attention_relations")})
    board = leaderboard(recipe, options, tmp_path / "out", emit=said.append)
    assert [row.name for row in board.rows][:2] == [CROSS_ENTROPY, PLAIN_KD]
    assert board.row("attention_relations").failed == "attention_relations found no attention layer in the student"
    assert board.row("attention_relations").fault is None
    assert board.row("dkd").figures[VALIDATION].by_seed == pytest.approx(
        [float(100 * trained[VALIDATION].mean()) for trained in scores_of(tmp_path / "out", "labels+dkd-own")]
    )
    assert board.row(RANDOM_TEACHER).metrics[TEST].keys() >= {"accuracy", "expected_calibration_error", "agreement"}
    assert board.choice.name in (PLAIN_KD, "dkd")
    assert board.traits.classes == 4
    assert board.traits.train_samples == 96
    assert board.traits.family == "convolutional"
    assert 0 < board.traits.student_macs < 0.5 * board.traits.teacher_macs
    assert any("dkd, seed 1" in event.text for event in said if isinstance(event, Note))
    written = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert written == board.model_dump(mode="json")


def test_strategies_compete_and_those_that_do_not_apply_say_why(recipe, tmp_path):
    options = SMALL.model_copy(update={"kinds": ("ps-kd", "unlabelled", "combined-teachers")})
    board = leaderboard(recipe, options, tmp_path / "out")
    assert board.row("ps-kd").role == "strategy"
    assert board.row("ps-kd").training == {"strategies": [{"kind": "ps-kd", "weight": 1.0, "share": 0.8}]}
    assert "no unlabeled split" in board.row("unlabelled").failed
    assert "needs several teachers" in board.row("combined-teachers").failed
    assert not any(row.fault for row in board.rows)


def scores_of(out, step):
    from safetensors.torch import load_file

    found = sorted((out / ".kdc" / "store").glob(f"{step}-*/scores.safetensors"))
    return [load_file(path) for path in found]


def counted(monkeypatch):
    done = []
    run = trials_module.run
    monkeypatch.setattr(trials_module, "run", lambda trial, *rest: done.append(trial.name) or run(trial, *rest))
    return done


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(recipe, tmp_path, monkeypatch):
    whole = leaderboard(recipe, SMALL, tmp_path / "whole")
    done = counted(monkeypatch)

    def stop(event):
        if isinstance(event, Note) and len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leaderboard(recipe, SMALL, tmp_path / "out", emit=stop)
    assert len(done) == 3
    again = leaderboard(recipe, SMALL, tmp_path / "out")
    assert len(done) == 2 * len(whole.rows)
    assert [row.figures for row in again.rows] == [row.figures for row in whole.rows]


def test_a_new_objective_costs_its_own_trainings_only(recipe, tmp_path, monkeypatch):
    leaderboard(recipe, SMALL, tmp_path / "out")
    done = counted(monkeypatch)
    more = SMALL.model_copy(update={"kinds": ("dkd", "dist"), "pipelines": {"my dkd": {"objectives": [
        {"kind": "labels", "weight": 0.1}, {"kind": "dkd"}]}}})  # fmt: skip
    board = leaderboard(recipe, more, tmp_path / "out")
    assert done == ["dist", "dist"]
    assert board.row("my dkd").figures == board.row("dkd").figures


def test_a_fault_in_one_method_loses_no_other_and_is_tried_again(recipe, tmp_path, monkeypatch):
    run = trials_module.run

    def broken(trial, *rest):
        if trial.name == "dkd":
            raise RuntimeError("the shapes do not fit")
        return run(trial, *rest)

    monkeypatch.setattr(trials_module, "run", broken)
    board = leaderboard(recipe, SMALL, tmp_path / "out")
    assert board.row("dkd").failed == "RuntimeError: the shapes do not fit"
    assert "Traceback" in board.row("dkd").fault
    assert board.row(PLAIN_KD).failed is None
    assert board.choice.name == PLAIN_KD
    monkeypatch.setattr(trials_module, "run", run)
    assert leaderboard(recipe, SMALL, tmp_path / "out").row("dkd").failed is None


def test_weights_are_chosen_with_a_seed_apart_and_equal_budgets(recipe, tmp_path, monkeypatch):
    done = []
    run = trials_module.run
    monkeypatch.setattr(trials_module, "run", lambda trial, *rest: done.append(trial) or run(trial, *rest))
    board = leaderboard(recipe, SMALL.model_copy(update={"try_weights": (1.0, 30.0)}), tmp_path / "out")
    apart = [trial for trial in done if trial.seed not in board.seeds]
    assert sorted(trial.name for trial in apart) == sorted(2 * [row.name for row in board.rows[1:]])
    assert len({trial.seed for trial in apart}) == 1
    points = board.factors["dkd"]
    assert points.keys() == {"1", "30"}
    assert board.row("dkd").factor == (30.0 if points["30"] > points["1"] else 1.0)
    assert board.row("dkd").objectives[1]["weight"] == board.row("dkd").factor
    assert board.row("dkd").objectives[0]["weight"] == 0.1


def test_a_folder_of_other_data_is_refused(recipe, tmp_path):
    leaderboard(recipe, SMALL.model_copy(update={"kinds": ()}), tmp_path / "out")
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"load": "elsewhere:load"})})
    with pytest.raises(FolderError, match="holds another run"):
        leaderboard(other, SMALL, tmp_path / "out")


@pytest.mark.slow
def test_the_number_of_jobs_changes_no_result(recipe, tmp_path):
    options = SMALL.model_copy(update={"kinds": ("hints",)})
    here = leaderboard(recipe, options, tmp_path / "here", jobs=1)
    there = leaderboard(recipe, options, tmp_path / "there", jobs=2)
    assert [row.figures for row in here.rows] == [row.figures for row in there.rows]


def test_processes_of_a_leaderboard_see_no_ctrl_c_from_the_first():
    asked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    command = [sys.executable, "-c", asked]
    with trials_module._without_ctrl_c():
        inside = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    behind = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (inside, behind) == ("True\n", "False\n")
