"""The demo meets its budget for every seed, within its time; exits ship only where they pay."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rows import ROOT, Claim, Outcome, Raw
from running_cases import run_kdc, run_python

SEEDS = range(10)
SECONDS = 60.0
RECIPE = ROOT / "models/digits/recipe.yaml"


def _demo(folder: Path) -> Raw:
    runs = {}
    for seed in SEEDS:
        began = time.monotonic()
        done = run_kdc(folder, "compress", RECIPE, "--seed", seed, "--out", folder / str(seed))
        seconds = time.monotonic() - began
        report = json.loads((folder / str(seed) / "report.json").read_text())
        limits = {one["name"]: one for one in report["budget"]}
        runs[str(seed)] = {
            "exit": done.returncode,
            "seconds": round(seconds, 1),
            "met": report["met"],
            "validation_drop": limits["max_drop"]["value"],
            "test_drop": [report["drop"][end] for end in ("points", "low", "high")],
            "speedup": [report["speedup"][end] for end in ("ratio", "low", "high")],
            "teacher_ms": report["teacher"]["latency"]["median_ms"],
            "student_ms": report["student"]["latency"]["median_ms"],
            "ships": next(row["name"] for row in report["steps"] if row["selected"]),
        }
        machine = {
            key: report["environment"].get(key) for key in ("cpu", "cpu_family", "processor_features", "busy_percent")
        }
    return {"runs": runs, "machine": machine}


def _every_seed_holds(raw: Raw) -> Outcome:
    runs = raw["runs"].values()
    drops = sorted(run["validation_drop"] for run in runs)
    low = min(run["speedup"][1] for run in runs)
    slowest = max(run["seconds"] for run in runs)
    right = len(runs) == len(SEEDS) and all(run["exit"] == 0 and run["met"] for run in runs) and slowest < SECONDS
    return Outcome(
        right,
        f"exit codes {[run['exit'] for run in runs]}; drops on validation {drops[0]:.2f} to {drops[-1]:.2f} points, lower "
        f"ends of the speed-up from {low:.1f}; the slowest took {slowest:.0f} s",
        f"exit 0 ten times, drops of at most 1 point, lower ends of at least 5, each in less than {SECONDS:.0f} s",
    )


def _exit_tests(folder: Path) -> Raw:
    done = run_python(ROOT, "-m", "pytest", "-q", "tests/driver/test_routed.py", "-k", "gain_enough")
    return {"exit": done.returncode, "last": done.stdout.strip().splitlines()[-1]}


CLAIMS = [
    Claim(
        "demo_ten_seeds",
        "make demo meets its budget for seeds 0 to 9, each within a minute on two idle cores",
        "for s in 0 1 2 3 4 5 6 7 8 9; do kdc compress models/digits/recipe.yaml --seed $s --out runs/$s; done",
        _demo,
        _every_seed_holds,
        long=True,
    ),
    Claim(
        "exits_must_pay",
        "early exits ship by default only with a mean gain of at least 1.1 and a worst case of at most 1.1",
        "python -m pytest tests/driver/test_routed.py -k gain_enough",
        _exit_tests,
        lambda raw: Outcome(raw["exit"] == 0, raw["last"], "every case of gain, cost and drop is judged so"),
    ),
]
