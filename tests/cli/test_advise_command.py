"""`kdc advise distill` as a user meets it."""

import json

import pytest
import yaml

from kdc.driver.evidence import read, shipped

SMALL = ("--seeds", "2", "--kinds", "hints", "--epochs", "1", "--samples", "96", "--keep-macs", "0.3", "--jobs", "1")


def test_advice_from_a_leaderboard_of_ones_own_can_be_pasted_into_a_recipe(kdc, shapes, tmp_path):
    made = kdc("bench", "distill", shapes / "recipe.yaml", *SMALL, "--out", "board", "--quiet")
    assert made.returncode == 0, made.stderr
    board = tmp_path / "board" / "leaderboard.json"
    done = kdc("advise", "distill", "--leaderboard", board)
    assert done.returncode == 0, done.stderr
    text, _, block = done.stdout.partition("\ntraining:")
    assert max(len(line) for line in text.splitlines() if str(board) not in line) <= 80
    assert "task: classification, 4 classes, 24 training samples a class; convolutional" in text
    assert " near this task, of " in text
    assert "alike in all traits" in " ".join(text.split())
    pasted = yaml.safe_load("training:" + block)["training"]
    told = json.loads(kdc("advise", "distill", "--leaderboard", board, "--json").stdout)
    boards = {one.source: one.board for one in [*read([board]), *shipped()]}
    nearest = next(one["source"] for one in told["witnesses"] if one["near"] and one["points"] is not None)
    assert pasted["epochs"] == boards[nearest].training["epochs"]  # the schedule with which that method was measured
    assert pasted["objectives"][0]["kind"] == "labels"
    recipe = yaml.safe_load((shapes / "recipe.yaml").read_text())
    recipe["passes"][0]["prune"]["training"] = pasted
    (shapes / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert kdc("plan", shapes / "recipe.yaml").returncode == 0
    far = kdc("advise", "distill", shapes / "recipe.yaml", "--leaderboard", board, "--json", "--quiet")
    told = json.loads(far.stdout)
    assert told["traits"]["train_samples"] == 360
    assert told["witnesses"][0]["near"]  # 3.75 times the samples


def test_nothing_is_claimed_where_no_evidence_is_near(kdc, shapes):
    done = kdc("advise", "distill", shapes / "recipe.yaml", "--set", "data.arguments.n=60000", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "no advice: what was measured elsewhere says nothing of this task" in " ".join(done.stdout.split())
    assert "kdc bench distill" in done.stdout
    assert "objectives" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "no task to advise on"), (("--leaderboard", "none.json"), "none.json is no leaderboard")],
)
def test_a_mistake_is_told(kdc, arguments, said):
    done = kdc("advise", "distill", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
