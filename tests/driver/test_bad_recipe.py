"""Recipes and flags that are refused: every message says where, what was found, what was expected and what to do."""

from pathlib import Path

import pytest
from recipe_toys import GOOD, KNOWN, refused, told

from kdc.core.errors import RecipeError
from kdc.driver.overrides import parse_latencies, parse_latency, parse_size
from kdc.driver.recipe import load_recipe
from passes import PASSES

# what is refused: the text


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"none\.yaml: there is no such recipe\n  → mend the path"):
        load_recipe(tmp_path / "none.yaml", {}, [], KNOWN)


def test_a_folder_in_place_of_a_recipe_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"is a folder; expected a recipe file"):
        load_recipe(tmp_path, {}, [], KNOWN)


def test_a_text_that_is_not_yaml_is_told_with_line_and_column(folder: Path):
    told(
        refused(folder, "teacher:\n  build: [1, 2\ndata: x\n"), "recipe.yaml:3:5: not a YAML text", "',' or ']'", "mend"
    )


def test_bytes_that_are_no_text_are_refused(folder: Path):
    (folder / "recipe.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(RecipeError, match="byte 3 is not UTF-8"):
        load_recipe(folder / "recipe.yaml", {}, [], KNOWN)


def test_control_characters_are_refused(folder: Path):
    told(refused(folder, "teacher: \x00"), "not a YAML text", "#x0000", "remove what is named there")


def test_an_empty_recipe_says_which_keys_it_needs(folder: Path):
    told(refused(folder, "# nothing\n"), "recipe.yaml:1: the recipe is empty", "teacher and data", "kdc schema")


def test_a_list_in_place_of_a_mapping_is_refused(folder: Path):
    told(refused(folder, "\n- teacher\n"), "recipe.yaml:2: found a list", "expected a mapping", "`key: value` lines")


def test_a_key_that_stands_twice_is_refused_with_both_lines(folder: Path):
    told(refused(folder, GOOD + "seed: 1\nbudget: {}\nseed: 2\n"), "recipe.yaml:5: the key 'seed'", "in line 3", "once")
    told(refused(folder, GOOD + "budget:\n  macs: 1\n  macs: 2\n"), "recipe.yaml:5: the key 'macs'", "in line 4")


def test_no_tag_runs_python(folder: Path):
    message = refused(folder, GOOD + "seed: !!python/object/apply:os.mkdir [x]\n")
    told(message, "recipe.yaml:3:7: not a YAML text that kdc reads", "python/object/apply:os.mkdir")
    assert not (folder / "x").exists()


def test_a_value_that_holds_itself_is_refused(folder: Path):
    told(refused(folder, GOOD + "passes: &p [*p]\n"), "recipe.yaml:3: this value holds itself", "write the value out")


def test_ten_thousand_brackets_are_refused(folder: Path):
    told(refused(folder, "teacher: " + "[" * 10_000), "not a YAML text that kdc reads")


# what is refused: keys, types, values


def test_an_unknown_key_is_told_with_the_one_that_was_meant(folder: Path):
    message = refused(folder, GOOD + "budegt: {macs: 1}\n")
    told(
        message,
        "recipe.yaml:3: unknown key 'budegt'",
        "expected one of budget, data, measure",
        "did you mean 'budget'?",
    )


def test_an_unknown_key_deeper_down_is_told_with_its_own_line(folder: Path):
    message = refused(folder, GOOD + "budget:\n  macs: 1\n  latency: 3\n")
    told(
        message, "recipe.yaml:5: unknown key 'latency'", "expected one of compile_minutes, latency_ms", "'latency_ms'?"
    )


def test_a_missing_key_is_told_with_what_it_is_for(folder: Path):
    message = refused(folder, "teacher:\n  weights: w.safetensors\n")
    told(message, "recipe.yaml:1: the key 'teacher.build' is missing", "callable", "--teacher")
    told(message, "recipe.yaml:1: the key 'data' is missing", "--data")


def test_a_missing_teacher_without_a_file_names_its_flag():
    with pytest.raises(RecipeError, match=r"the command line: the key 'teacher' is missing.*--teacher"):
        load_recipe(None, {}, [], KNOWN)


@pytest.mark.parametrize(
    ("text", "line", "found", "expected"),
    [
        ("seed: soon\n", 3, "seed is 'soon'", "a valid integer"),
        ("seed: -1\n", 3, "seed is -1", "a number greater than or equal to 0"),
        ("seed: true\n", 3, "seed is true", "a finite number"),
        ("target: [a]\n", 3, "target is ['a']", "a valid string"),
        ("task: segmentation\n", 3, "task is 'segmentation'", "'classification'"),
        ("budget: 3\n", 3, "budget is 3", "a mapping with the keys compile_minutes"),
        ("budget:\n  latency_ms: fast\n", 4, "budget.latency_ms is 'fast'", "a valid number"),
        ("budget:\n  latency_ms: yes\n", 4, "budget.latency_ms is 'yes'", "a valid number"),
        ("budget:\n  latency_ms: true\n", 4, "budget.latency_ms is true", "a finite number"),
        ("budget:\n  size_mb: .inf\n", 4, "budget.size_mb is inf", "a finite number"),
        ("budget:\n  size_mb: .nan\n", 4, "budget.size_mb is nan", "a number greater than 0"),
        ("budget:\n\n  latency_ms: 0\n", 5, "budget.latency_ms is 0", "a number greater than 0"),
        ("budget:\n  macs: 1\n  latency_ms@cold: fast\n", 5, "budget.latency_ms@cold is 'fast'", "a valid number"),
        ("budget:\n  latency_ms@cold: true\n", 4, "budget.latency_ms@cold is true", "a finite number"),
        ("budget:\n  latency_ms@clod: 1\n", 4, "unknown key 'latency_ms@clod'", "latency_ms@cold"),
        ("budget: {macs: -1e6}\n", 3, "budget.macs is -1000000.0", "a number greater than 0"),
        ("budget: {max_drop: -1}\n", 3, "budget.max_drop is -1", "a number greater than or equal to 0"),
        ("budget: {percentile: 100}\n", 3, "budget.percentile is 100", "a number less than 100"),
        ("passes: trim\n", 3, "passes is 'trim'", "a list of passes"),
        ("passes:\n  - 3\n", 4, "passes.0 is 3", "a pass's name"),
        ("passes:\n  - trim\n  - {trim: {}, polish: {}}\n", 5, "passes.1 is {'trim'", "a mapping with that one key"),
        ("passes:\n  - trim: 3\n", 4, "passes.0 is 3", "a mapping with the keys bits"),
        ("passes:\n  - trim:\n      keep_macs: 2\n", 5, "passes.0.keep_macs is 2", "less than or equal to 1"),
        ("passes:\n  - trim:\n      bits: x\n", 5, "passes.0.bits is 'x'", "a valid integer, unable to parse string"),
        ("passes:\n  - trim:\n      bits: x\n", 5, "passes.0.bits is 'x'", "or 'auto'"),
        (
            "passes:\n  - trim:\n      sizes:\n        - 1\n        - a\n",
            7,
            "passes.0.sizes.1 is 'a'",
            "a valid integer",
        ),
        ("passes:\n  - trim: {sizes: [true]}\n", 4, "passes.0.sizes.0 is true", "a finite number"),
        ("passes:\n  - trim: {schedule: {epochs: 0}}\n", 4, "passes.0.schedule.epochs is 0", "over the training split"),
    ],
)
def test_a_wrong_type_or_value_is_told_with_its_line(folder: Path, text: str, line: int, found: str, expected: str):
    told(refused(folder, GOOD + text), f"recipe.yaml:{line}: {found}", expected, "expected", "→")


def test_an_unknown_pass_is_told_with_the_known_ones(folder: Path):
    message = refused(folder, GOOD + "passes:\n  - polish\n  - trimm: {keep_macs: 0.5}\n")
    told(message, "recipe.yaml:5: unknown pass 'trimm'", "expected one of polish, trim", "'trim'?", "`kdc passes`")


def test_an_unknown_setting_of_a_pass_is_told_with_the_known_ones(folder: Path):
    message = refused(folder, GOOD + "passes:\n  - trim:\n      keep_mac: 0.5\n")
    told(message, "recipe.yaml:5: unknown setting of the pass trim 'keep_mac'", "one of bits", "'keep_macs'?")
    message = refused(folder, GOOD + "passes:\n  - trim:\n      schedule: {epoch: 1}\n")
    told(message, "recipe.yaml:5: unknown setting of the pass trim 'epoch'", "one of epochs", "`kdc passes trim`")


@pytest.mark.parametrize(
    ("text", "line", "found", "expected"),
    [
        ("teacher: {build: no.py:build}\ndata: my.py:load\n", 1, "no file no.py", "a Python file"),
        ("teacher: {build: my.py:build}\ndata:\n  load: no.py:load\n", 3, "no file no.py", "a Python file"),
        ("teacher:\n  build: my.py:build\n  weights: no.pt\ndata: my.py:load\n", 3, "no file no.pt", "a weights file"),
        (
            "teacher:\n  build: my.py:build\n  weights: my.py\ndata: my.py:load\n",
            3,
            "'my.py' is no weights",
            ".safetensors",
        ),
        ("teacher: {build: my.py}\ndata: my.py:load\n", 1, "teacher.build is 'my.py'", "file.py:callable"),
        ("teacher: {build: a/b:c}\ndata: my.py:load\n", 1, "teacher.build is 'a/b:c'", "package.module:callable"),
        ("teacher: {build: 'my.py:'}\ndata: my.py:load\n", 1, "teacher.build is 'my.py:'", "file.py:callable"),
        (GOOD + "target: board.toml\n", 3, "no file board.toml", "a target's profile"),
    ],
)
def test_a_file_that_is_missing_is_told_with_its_line(folder: Path, text: str, line: int, found: str, expected: str):
    told(refused(folder, text), f"recipe.yaml:{line}: ", found, expected)


def test_a_key_that_is_no_text_is_refused(folder: Path):
    told(refused(folder, GOOD + "3: x\n"), "recipe.yaml:3: the key 3 is no text", "quote it")
    message = refused(folder, "data: my.py:load\nteacher:\n  build: my.py:build\n  arguments:\n    3: x\n")
    told(message, "recipe.yaml:5: the key 3 is no text; expected a name", "quote it")


def test_all_mistakes_are_told_together_one_a_line_in_their_order(folder: Path):
    message = refused(folder, GOOD + "budegt: 1\nseed: x\npasses:\n  - trimm\n  - trim: {keep_mac: 1, bits: x}\n")
    lines = [line.split(":")[1] for line in message.splitlines()]
    assert lines == ["3", "4", "6", "7", "7"]


# what is refused: flags


@pytest.mark.parametrize(
    ("setting", "found", "do"),
    [
        ("passes.5.keep_macs=0.5", "there is no passes.5: passes has items 0 to 0", "an item that is there"),
        ("passes.x.keep_macs=0.5", "there is no passes.x", "an item that is there"),
        ("passes.0.ratio=0.5", "--set passes.0.ratio: unknown setting of the pass trim 'ratio'", "kdc passes trim"),
        ("budget.latency=1", "--set budget.latency: unknown key 'latency'", "did you mean 'latency_ms'?"),
        ("nothing=1", "--set nothing: unknown key 'nothing'", "kdc schema"),
        ("target.name=1", "target is 'cpu-ort', which holds no keys", "give it whole: --set target=VALUE"),
        ("seed", "--set 'seed': expected key.path=value", "--set passes.0.keep_macs=0.5"),
        ("=3", "--set '=3': expected key.path=value", "--set passes.0.keep_macs=0.5"),
        ("seed=[1", "the value '[1' is no YAML", "quote"),
        ("seed=x", "--set seed: seed is 'x'; expected a valid integer", "set seed"),
    ],
)
def test_a_bad_set_is_told_by_its_own_name(folder: Path, setting: str, found: str, do: str):
    told(refused(folder, GOOD + "target: cpu-ort\npasses: [trim]\n", settings=(setting,)), found, do)


def test_set_into_passes_that_the_recipe_does_not_list_says_so(folder: Path):
    message = refused(folder, GOOD, settings=("passes.0.keep_macs=0.5",))
    told(message, "there is no passes.0: passes is not in the recipe", "write passes into the recipe first")


def test_a_bad_flag_is_told_by_the_name_that_was_typed(folder: Path):
    told(refused(folder, GOOD, {"budget.latency_ms": -1}), "--max-latency: budget.latency_ms is -1; expected a number")
    told(refused(folder, GOOD, {"teacher.weights": "no.pt"}), "--weights: there is no file", "mend the path")
    told(refused(folder, GOOD, {"data.load": "no.py:load"}), "--data: there is no file", "mend the path")


@pytest.mark.parametrize(
    ("training", "do"),
    [
        ("strategies: [{kind: mixup}]", "→ mixup is one of `transforms`: name it there"),
        ("objectives: [{kind: labels}, {kind: ps-kd}]", "→ ps-kd is one of `strategies`: name it there"),
        ("objectives: [{kind: hintz}]", "→ did you mean 'hints'? `kdc passes prune` shows"),
        ("optimizer: {kind: dott}", "→ did you mean 'dot'?"),
        ("strategies: [{kind: nonesuch}]", "→ set passes.0.training.strategies.0 to such a value"),
    ],
)
def test_a_kind_under_the_wrong_key_or_misspelt_is_told_where_or_how_it_would_be_known(tmp_path: Path, training, do):
    (tmp_path / "recipe.yaml").write_text(GOOD + f"passes: [{{prune: {{training: {{{training}}}}}}}]\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml", {}, [], PASSES)
    told(str(caught.value), do)


@pytest.mark.parametrize("text", ["fast", "", "-1ms", "1,5ms", "ms", "nan", "inf", "1 2ms"])
def test_a_latency_that_is_none_is_refused_with_examples(text: str):
    with pytest.raises(RecipeError, match=r"expected a time.*0\.4ms, 400us or 0\.0004s") as caught:
        parse_latency(text)
    told(str(caught.value), repr(text), "→")


@pytest.mark.parametrize("text", ["1ms@warm", "1ms@", "1ms@ hot cold"])
def test_a_latency_of_an_unknown_regime_is_refused_with_examples(text: str):
    with pytest.raises(RecipeError, match=r"expected a time of hot or of cold runs, like .*0\.4ms@cold") as caught:
        parse_latencies([text])
    told(str(caught.value), repr(text), "write 1ms@cold")


@pytest.mark.parametrize(("text", "do"), [("8mbit", "8"), ("3 apples", "3MB"), ("4k", "4kb")])
def test_an_unknown_unit_is_refused_with_examples(text: str, do: str):
    with pytest.raises(RecipeError, match=r"is no unit of a size; expected one like 300kB, 8MB or 1\.2MiB") as caught:
        parse_size(text)
    told(str(caught.value), do)


# how long to measure


@pytest.mark.parametrize("value", ["0", "-1", ".inf", "true", "[1]"])
def test_seconds_of_measuring_are_a_finite_number_above_zero(folder: Path, value: str):
    told(refused(folder, GOOD + f"measure: {{seconds: {value}}}\n"), "recipe.yaml:3", "measure.seconds")


def test_a_limit_on_cold_runs_needs_cold_runs(folder: Path):
    text = GOOD + "budget: {latency_ms@cold: 3}\nmeasure: {cold_seconds: 0}\n"
    told(refused(folder, text), "recipe.yaml:4", "measure.cold_seconds is 0", "more than 0", "take the limit out")
