"""Processes: where they listen, whom they look up, what they leave when they are stopped."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from pathlib import Path

from killed_runs import CODES, Runs, moments
from rows import Claim, Outcome, Raw
from running_cases import copy_case

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
MOMENTS = (
    "load", "load", "teacher", "teacher", "prune", "prune", "training", "training", "training", "export", "measuring",
    "measuring",
)  # fmt: skip
# Nothing in it is decided by timing: one pass, whose budget is in MACs, and integers are left out.
BY_COUNTING = """
teacher: {build: teacher.py:build, weights: weights.safetensors}
data: data.py:load
budget: {max_drop: 20}
passes:
  - prune: {keep_macs: 0.5, training: {epochs: 12, batch: 32, learning_rate: 3.0e-3, checkpoint_seconds: 0.5}}
"""
BY_TIMING = """
teacher: {build: teacher.py:build, weights: weights.safetensors}
data: data.py:load
budget: {max_drop: 30, min_speedup: 1.2}
passes:
  - prune: {training: {epochs: 12, batch: 32, learning_rate: 3.0e-3, checkpoint_seconds: 0.5}}
"""


def _recipe(folder: Path, text: str) -> Path:
    recipe = copy_case("plain", folder) / "killed.yaml"
    recipe.write_text(text)
    return recipe


def _measure_killed(folder: Path) -> Raw:
    recipe = _recipe(folder / "project", BY_COUNTING)
    whole = Runs(recipe, folder / "whole", folder / "undisturbed")
    code, at = whole.whole()
    killed = Runs(recipe, folder / "killed", folder / "disturbed")
    stopped = [dataclasses.asdict(killed.stopped(*moment)) for moment in moments(at, MOMENTS, SIGNALS, seed=13)]
    last, _ = killed.whole()
    expected, found = whole.bytes_of(), killed.bytes_of()
    return {
        "undisturbed_exit_code": code,
        "phases_seconds": {phase: round(seconds, 1) for phase, seconds in at.items()},
        "stopped": stopped,
        "exit_code": last,
        "files": len(expected),
        "differing": sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)),
        "left_in_temporary": killed.left(),
        "left_in_out": killed.partial(),
    }


def _judge_killed(raw: Raw) -> Outcome:
    stopped = raw["stopped"]
    codes = {number.name: code for number, code in CODES.items()}
    as_told = [one for one in stopped if one["exit_code"] == codes[one["signal"]]]
    dirty = [
        one
        for before, one in zip([None, *stopped], stopped, strict=False)
        if one["signal"] != "SIGKILL"
        and one["left"]  # the run after a killed one has swept, and cleaned up after itself
    ]
    alive = sum(one["alive"] for one in stopped)
    holds = (
        len(as_told) == len(stopped) == len(MOMENTS)
        and not (dirty or alive or raw["differing"] or raw["left_in_temporary"] or raw["left_in_out"])
        and raw["files"] > len(MOMENTS) // 4
        and raw["exit_code"] == raw["undisturbed_exit_code"]
    )
    phases = ", ".join(dict.fromkeys(one["phase"] for one in stopped))
    return Outcome(
        holds,
        f"{len(as_told)} of {len(stopped)} ended by their signal's exit code, in {phases}; {alive} processes outlived "
        f"theirs; {len(dirty)} runs that could clean up left something; of {raw['files']} files differ: "
        f"{', '.join(raw['differing']) or 'none'}; left in the temporary folder at the end: "
        f"{', '.join(raw['left_in_temporary']) or 'nothing'}, half-written in the output folder: "
        f"{', '.join(raw['left_in_out']) or 'nothing'}",
        "exit 143, 129 and -9; the same bytes of every file as an undisturbed run's; no process and nothing left",
    )


def _measure_decided(folder: Path) -> Raw:
    recipe = _recipe(folder / "project", BY_TIMING)
    sign = ".kdc/**/decision.json"
    first = Runs(recipe, folder / "killed", folder / "disturbed")
    stopped = [first.stopped_when(sign, signal.SIGKILL)]
    decided = next((folder / "killed").glob(sign)).read_text()
    shutil.copytree(folder / "killed", folder / "whole")
    whole = Runs(recipe, folder / "whole", folder / "undisturbed")
    code, at = whole.whole()
    phases = ("training", "training", "measuring")
    # Their training begins where the decision is read.
    stopped += [first.stopped(*moment) for moment in moments(at, phases, SIGNALS, seed=13)]
    last, _ = first.whole()
    expected, found = whole.bytes_of(), first.bytes_of()
    return {
        "decision": decided,
        "stopped": [dataclasses.asdict(one) for one in stopped],
        "undisturbed_exit_code": code,
        "exit_code": last,
        "files": len(expected),
        "differing": sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)),
        "left_in_temporary": first.left(),
        "left_in_out": first.partial(),
    }


def _judge_decided(raw: Raw) -> Outcome:
    codes = {number.name: code for number, code in CODES.items()}
    as_told = [one for one in raw["stopped"] if one["exit_code"] == codes[one["signal"]]]
    holds = len(as_told) == len(raw["stopped"]) == 4 and raw["files"] > 3
    holds = holds and not (raw["differing"] or raw["left_in_temporary"] or raw["left_in_out"])
    return Outcome(
        holds,
        f"{len(as_told)} of {len(raw['stopped'])} ended by their signal's exit code; of {raw['files']} files differ: "
        f"{', '.join(raw['differing']) or 'none'}; left: "
        f"{', '.join(raw['left_in_temporary'] + raw['left_in_out']) or 'nothing'}",
        "the same bytes as the run that went on undisturbed from the stored decision, and nothing left",
    )


CLAIMS = [
    Claim(
        "killed_runs",
        "Twelve runs that are ended at random moments by SIGTERM, SIGHUP and SIGKILL go on to an undisturbed run's bytes, "
        "and leave an empty temporary folder.",
        "kdc compress recipe.yaml --out run & sleep $((RANDOM % 60)); kill -TERM $!; kdc compress recipe.yaml --out run",
        _measure_killed,
        _judge_killed,
        long=True,
    ),
    Claim(
        "killed_after_a_timed_decision",
        "A recipe that decides by timing, killed once its decision is stored, goes on to the bytes of that decision.",
        "kdc compress recipe.yaml --out run --min-speedup 1.2 & (until ls run/.kdc/store/work/*/decision.json; do :; done; "
        "kill -9 $!); kdc compress recipe.yaml --out run --min-speedup 1.2",
        _measure_decided,
        _judge_decided,
        long=True,
    ),
]
