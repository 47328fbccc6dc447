"""`kdc bench distill` as a user meets it."""

import json

import pytest

SMALL = ("--seeds", "2", "--kinds", "dkd,attention_relations", "--epochs", "1", "--keep-macs", "0.3", "--samples", "96")


def test_the_table_fits_80_columns_and_tells_what_did_not_apply(kdc, shapes, tmp_path):
    done = kdc("bench", "distill", shapes / "recipe.yaml", *SMALL, "--out", "board", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("accuracy on shapes, mean of 2 seeds; student")
    assert "attention_relations: not used: attention_relations found no attention layer" in done.stdout
    assert "best on validation:" in done.stdout
    assert "dkd, seed 1: validation" in done.stderr
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    again = kdc("bench", "distill", shapes / "recipe.yaml", *SMALL, "--out", "board", "--json", "--quiet")
    assert json.loads(again.stdout) == board  # from what is stored
    assert again.stderr == ""
    page = kdc("bench", "distill", shapes / "recipe.yaml", *SMALL, "--out", "board", "--markdown", "--quiet").stdout
    assert page.startswith("| method | validation, 95% |")
    assert "| `random teacher` |" in page


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--kinds", "squash"], "there is no objective or strategy 'squash'"),
        (["--pipeline", "mine"], "is no NAME=YAML"),
        (["--pipeline", "mine=[{kind: squash}]"], "pipeline 'mine': objectives"),
        (["--try-weights", "0,1"], "is no list of factors above 0"),
        (["--seeds", "1"], "--seeds"),
    ],
)
def test_a_mistake_in_a_flag_is_told(kdc, shapes, flags, said):
    done = kdc("bench", "distill", shapes / "recipe.yaml", *flags)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("verb", [("bench",), ("bench", "distill")])
def test_its_help_fits_80_columns(kdc, verb):
    done = kdc(*verb, "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
