"""Pruning: what stays computes what it did, and a share of the multiply-accumulates is one of the exported file."""

import json
from pathlib import Path

from rows import Claim, Outcome, Raw
from running_cases import copy_case, run_python

NO_DIFFERENCE = 1e-4
"""Of the outputs' RMS: rounding is a hundred times smaller."""


def _statistics(folder: Path) -> Raw:
    run = _checked(folder, "weight_standardized")
    lines = run.splitlines()
    return {
        "differences": [float(line.rpartition(" ")[2]) for line in lines if "differs by" in line],
        "kept_whole": [line for line in lines if line.startswith("kept whole")],
    }


def _judge_statistics(raw: Raw) -> Outcome:
    largest = max(raw["differences"], default=float("inf"))
    about = [line for line in raw["kept_whole"] if "statistics" in line]
    return Outcome(
        largest <= NO_DIFFERENCE and bool(about),
        f"largest difference {largest:.2g} of the outputs' RMS; {'; '.join(about) or 'no layer is kept whole for it'}",
        f"at most {NO_DIFFERENCE:g} for each group that is cut, and the standardized layer's input is kept whole",
    )


def _products(folder: Path) -> Raw:
    counts: Raw = json.loads(_checked(folder, "attention_macs").splitlines()[-1])
    return counts


def _judge_products(raw: Raw) -> Outcome:
    teacher, student = raw["teacher"], raw["student"]
    share = student["file"] / teacher["file"]
    agree = all(model["prune"] == model["file"] for model in (teacher, student))
    return Outcome(
        agree and share <= 0.5,
        f"teacher {teacher['prune']:,} by pruning's count, {teacher['file']:,} in the file; student {student['prune']:,} "
        f"and {student['file']:,}: {share:.1%} of the file's",
        "the same counts, and at most 50.0%",
    )


def _checked(folder: Path, case: str) -> str:
    run = run_python(copy_case(case, folder), "check.py")
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    return run.stdout


CLAIMS: list[Claim] = [
    Claim(
        name="weight_standardized",
        claim="a pruned model computes what the model computes with these channels at zero, weight-standardized or not",
        command="cd tests/cases/weight_standardized && python check.py",
        measure=_statistics,
        judge=_judge_statistics,
    ),
    Claim(
        name="attention_macs",
        claim="keep_macs is a share of the exported file's multiply-accumulates, attention's products included",
        command="cd tests/cases/attention_macs && python check.py",
        measure=_products,
        judge=_judge_products,
    ),
]
