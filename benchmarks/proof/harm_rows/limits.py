"""One rule for limits: which end is held, who chooses and who confirms, and that nothing says otherwise."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from rows import ROOT, Claim, Outcome, Raw
from running_cases import copy_case, run_kdc, run_python

CASE = "in a copy of tests/cases/plain: "
SHORT = "passes=[{prune: {keep_macs: 0.2, training: {epochs: 8, batch: 32, learning_rate: 3.0e-3}}}]"


def _run(folder: Path, limit: str) -> Raw:
    """One run with this budget: its exit code and what its report says of it."""
    done = run_kdc(folder, "compress", "recipe.yaml", "--set", SHORT, "--set", f"budget={limit}", "--out", "run")
    report = json.loads((folder / "run/report.json").read_text())
    return {
        "exit": done.returncode,
        "met": report["met"],
        "budget": {one["name"]: one for one in report["budget"]},
        "validation_drop": report["steps"][0]["drop"],
        "test_drop": report["drop"],
        "notes": report["notes"],
        "table": done.stdout,
        "error": done.stderr,
    }


def _harder(folder: Path, split: str) -> Path:
    """The plain case with noise on one split, so that the student falls further behind the teacher there."""
    case = copy_case("plain", folder)
    data = (case / "data.py").read_text().replace("def load(", "def clean(")
    (case / "data.py").write_text(
        f"{data}\n\ndef load():\n    splits = clean()\n    x, y = splits['{split}']\n"
        f"    noise = np.random.default_rng(1).normal(0, 0.5, x.shape).astype(np.float32)\n"
        f"    return {{**splits, '{split}': (x + noise, y)}}\n"
    )
    return case


def _split_apart(folder: Path, split: str) -> Raw:
    """A limit that one split keeps and the other misses, as their drops turned out; the same student both times."""
    case = _harder(folder, split)
    free = _run(case, "{max_drop: null}")
    test = free["test_drop"]
    beside = max(test["points"], 0) if split == "validation" else test["low"]
    limit = (max(free["validation_drop"]["points"], 0) + beside) / 2
    return {"limit": limit, **_run(case, f"{{max_drop: {limit:.4f}}}")}


def _fails_on_validation(raw: Raw) -> Outcome:
    held = raw["budget"]["max_drop"]
    fair = held["value"] > raw["limit"] > raw["test_drop"]["points"]
    said = "NOT MET; this student is the nearest" in raw["table"]
    return Outcome(
        fair and raw["exit"] == 3 and not raw["met"] and said,
        f"limit {raw['limit']:.2f}: {held['value']:.2f} on validation, {raw['test_drop']['points']:.2f} on test; "
        f"exit {raw['exit']}, met {raw['met']}",
        "the drop on validation beyond the limit, that on test within it; exit 3, the nearest",
    )


def _contradicted(raw: Raw) -> Outcome:
    held = raw["budget"]["max_drop"]
    fair = held["value"] <= raw["limit"] < held["test"][0]
    told = any("contradicts" in note for note in raw["notes"])
    return Outcome(
        fair and raw["exit"] == 3 and not raw["met"] and told,
        f"limit {raw['limit']:.2f}: {held['value']:.2f} on validation, [{held['test'][0]:.2f}, {held['test'][1]:.2f}] on "
        f"test; exit {raw['exit']}, a note {'says so' if told else 'is missing'}",
        "within the limit on validation, the whole interval beyond it on test; exit 3 and a note",
    )


def _confirmed(folder: Path) -> Raw:
    case = _harder(folder, "test")
    free = _run(case, "{max_drop: null}")
    test = free["test_drop"]
    limit = (max(free["validation_drop"]["points"], test["low"]) + test["points"]) / 2
    return {"limit": limit, **_run(case, f"{{max_drop: {limit:.4f}}}")}


def _not_contradicted(raw: Raw) -> Outcome:
    held = raw["budget"]["max_drop"]
    fair = held["value"] <= raw["limit"] < raw["test_drop"]["points"] and held["test"][0] <= raw["limit"]
    speed = raw["budget"]["proven_faster"]["met"]
    return Outcome(
        fair and held["met"] and raw["exit"] == (0 if speed else 3),
        f"limit {raw['limit']:.2f}: {held['value']:.2f} on validation, {raw['test_drop']['points']:.2f} "
        f"[{held['test'][0]:.2f}, {held['test'][1]:.2f}] on test; max_drop met {held['met']}, exit {raw['exit']}",
        "the point on test beyond the limit, its interval not as a whole: the limit is met",
    )


def _only_size(folder: Path) -> Raw:
    case = copy_case("plain", folder)
    return {name: _run(case, f"{{max_drop: null, {name}: {limit}}}") for name, limit in
            (("size_mb", 1), ("macs", 1e6), ("peak_memory_mb", 500))}  # fmt: skip


def _ships_unless_slower(raw: Raw) -> Outcome:
    rows = {name: one["budget"] for name, one in raw.items()}
    right = all(
        "proven_faster" not in row and raw[name]["exit"] == (0 if all(one["met"] for one in row.values()) else 3)
        and "upper end" in row["not_slower"]["end"]
        for name, row in rows.items()
    )  # fmt: skip
    return Outcome(
        right and all(one["exit"] == 0 for one in raw.values()),
        ", ".join(
            f"{name}: exit {one['exit']}, not_slower {one['budget']['not_slower']['value']:.2f}"
            for name, one in raw.items()
        ),
        "exit 0 with not_slower met, no proof of a speed-up asked",
    )


def _upper(folder: Path) -> Raw:
    case = copy_case("plain", folder)
    asked = [
        run_kdc(case, "plan", "recipe.yaml", "--set", f"budget.max_drop={{points: {points}, by: upper}}")
        for points in (1, 2.5)
    ]
    began = time.monotonic()
    run = run_kdc(case, "compress", "recipe.yaml", "--set", "budget.max_drop={points: 1, by: upper}", "--out", "run")
    return {
        "codes": [one.returncode for one in asked],
        "error": asked[0].stderr,
        "compress": [run.returncode, time.monotonic() - began, run.stderr],
    }


def _refused_with_the_number(raw: Raw) -> Outcome:
    number = re.search(r"at least (\d+) validation samples", raw["error"])
    code, _, error = raw["compress"]
    return Outcome(
        raw["codes"] == [2, 0] and number is not None and number[1] == "300" and code == 2 and "epoch" not in error,
        f"150 samples: 1 point exits {raw['codes'][0]} and asks for {number and number[1]}, 2.5 points exit "
        f"{raw['codes'][1]}; compress exits {code} before any training",
        "2 with 300 samples, and 0",
    )


def _tests(folder: Path) -> Raw:
    done = run_python(ROOT, "-m", "pytest", "-q", "tests/driver/test_limits.py", "tests/driver/test_select.py")
    return {"exit": done.returncode, "last": done.stdout.strip().splitlines()[-1]}


def _all_pass(raw: Raw) -> Outcome:
    return Outcome(
        raw["exit"] == 0, raw["last"], "every test of the rule passes, among them 150 reports made at random"
    )


CLAIMS = [
    Claim(
        "validation_decides",
        "a student that fails on validation is the nearest, exit 3, though it passes on the test split",
        CASE + "kdc compress recipe.yaml --set budget.max_drop=LIMIT --out run, with noise on the validation images",
        lambda folder: _split_apart(folder, "validation"),
        _fails_on_validation,
    ),
    Claim(
        "test_contradicts",
        "the test split contradicts where its whole interval lies beyond the limit",
        CASE + "the same with noise on the test images, the limit between the two drops",
        lambda folder: _split_apart(folder, "test"),
        _contradicted,
    ),
    Claim(
        "test_confirms",
        "the test split does not contradict by its point alone",
        CASE + "the same, the limit within the test split's interval",
        _confirmed,
        _not_contradicted,
    ),
    Claim(
        "only_size_limited",
        "where only size, MACs or memory are limited, a student that is not proven slower ships",
        CASE + "kdc compress recipe.yaml --set 'budget={max_drop: null, size_mb: 1}' --out run",
        _only_size,
        _ships_unless_slower,
    ),
    Claim(
        "upper_end_refused",
        "max_drop by its upper end is refused at plan time where the validation split is too small ever to show it",
        CASE + "kdc plan recipe.yaml --set 'budget.max_drop={points: 1, by: upper}'",
        _upper,
        _refused_with_the_number,
    ),
    Claim(
        "never_disagree",
        "report, table and exit code name the end that was used for each limit and never disagree",
        "python -m pytest tests/driver/test_limits.py tests/driver/test_select.py",
        _tests,
        _all_pass,
    ),
]
