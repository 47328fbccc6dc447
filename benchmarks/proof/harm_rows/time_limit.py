"""A limit on a run's time is kept and leaves a student; a search below its smallest member leaves that member."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from rows import ROOT, Claim, Outcome, Raw
from running_cases import copy_case

MINUTES = 1.5
FASHION = ROOT / "models/fashion_mnist"
BUSY = 2  # loops beside the third run
AT_ONCE = 1 / 3  # of the limit: until then a run may say that it will not fit


def _kdc(folder: Path, *arguments: object) -> tuple[int, float, str]:
    """The exit code of a command in this folder, its seconds by the wall, and what it printed."""
    began = time.monotonic()
    command = [sys.executable, "-m", "kdc.cli.main", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, time.monotonic() - began, done.stdout + done.stderr


def _run(out: Path) -> Raw:
    code, seconds, said = _kdc(FASHION, "compress", "recipe.yaml", "--out", out, "--max-minutes", MINUTES)
    report = out / "report.json"
    found = json.loads(report.read_text()) if report.exists() else {}
    return {
        "exit_code": code,
        "seconds": round(seconds, 1),
        "student": (out / "student.onnx").exists(),
        "report": report.exists(),
        "load": _load(),
        "points": found.get("student", {}).get("metric", {}).get("points"),
        "notes": [note for note in found.get("notes", []) if "compile_minutes" in note],
        "said": said.strip()[-600:],
    }


def _load() -> float:
    return float(Path("/proc/loadavg").read_text().split()[0]) if Path("/proc/loadavg").exists() else -1.0


def _three_runs(folder: Path) -> Raw:
    runs = [_run(folder / f"{number}") for number in (1, 2)]
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    try:
        runs.append({**_run(folder / "busy"), "busy_loops": BUSY})
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    return {"minutes": MINUTES, "runs": runs}


def _in_time(raw: Raw) -> Outcome:
    asked = 60 * raw["minutes"]
    most = asked + max(15.0, 0.1 * asked)
    runs = raw["runs"]

    def fits(run: Raw) -> bool:
        return run["seconds"] <= most and run["student"] and run["report"] and run["exit_code"] in (0, 3)

    def refused(run: Raw) -> bool:
        return (
            run["exit_code"] == 3
            and run["seconds"] <= AT_ONCE * asked
            and "to lower, measure and report" in run["said"]
        )

    holds = len(runs) == 3 and all(fits(run) or ("busy_loops" in run and refused(run)) for run in runs)
    told = [
        f"{run['seconds']:.0f} s, exit {run['exit_code']}, {'a' if run['student'] else 'no'} student"
        f"{' (beside busy loops)' if 'busy_loops' in run else ''}"
        for run in runs
    ]
    return Outcome(
        holds,
        "; ".join(told),
        f"each at most {most:.0f} s by the wall, with a student and a report; the busy one may instead say within "
        f"{AT_ONCE * asked:.0f} s that it will not fit",
    )


def _below(folder: Path) -> Raw:
    case = copy_case("plain", folder)
    passes = "passes=[{search: {spaces: [{family: plain, depth: [1, 3], channels: [4, 8]}], training: {epochs: 2}}}]"
    out = folder / "out"
    code, _, said = _kdc(case, "compress", "recipe.yaml", "--out", out, "--max-macs", 10, "--set", passes)
    report = out / "report.json"
    found = json.loads(report.read_text()) if report.exists() else {}
    return {
        "exit_code": code,
        "student": (out / "student.onnx").exists(),
        "nearest": (found.get("steps") or [{}])[0].get("findings", {}).get("nearest"),
        "missed": [limit["name"] for limit in found.get("budget", []) if not limit["met"]],
        "said": said.strip()[-600:],
    }


def _nearest_left(raw: Raw) -> Outcome:
    holds = raw["exit_code"] == 3 and raw["student"] and bool(raw["nearest"]) and "macs" in raw["missed"]
    found = (
        f"exit {raw['exit_code']}, {'a' if raw['student'] else 'no'} student; missed: {raw['missed']}; {raw['nearest']}"
    )
    return Outcome(holds, found, "exit 3, the smallest member as student, a report that names macs as missed")


CLAIMS: list[Claim] = [
    Claim(
        name="time_limit_is_kept",
        claim="Fashion-MNIST under --max-minutes 1.5, twice and once beside two busy loops, ends in time with a student; "
        "or says at once that it will not fit",
        command="cd models/fashion_mnist && kdc compress recipe.yaml --out OUT --max-minutes 1.5",
        measure=_three_runs,
        judge=_in_time,
        long=True,
    ),
    Claim(
        name="search_below_its_smallest_member",
        claim="a search whose budget lies below its smallest member leaves that member and a report",
        command="kdc compress recipe.yaml --out OUT --max-macs 10 --set 'passes=[{search: ...}]'",
        measure=_below,
        judge=_nearest_left,
    ),
]
