"""Processes: where they listen, whom they look up, what they leave when they are stopped."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import sockets
from killed_runs import CODES, Runs, moments
from network_watch import NetworkWatch, cannot_watch
from rows import Claim, Outcome, Raw
from running_cases import copy_case

from kdc.core import telemetry

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
MOMENTS = (
    "load", "load", "teacher", "teacher", "prune", "prune", "training", "training", "training", "export", "measuring",
    "measuring",
)  # fmt: skip
SHARED = "passes=[{prune: {keep_macs: 0.5, training: {epochs: 1, batch: 32, processes: 2}}}]"
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
  - prune: {training: {epochs: 60, batch: 32, learning_rate: 3.0e-3, checkpoint_seconds: 0.5}}
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
    """Each kill meets a copy of the run as it was when its decision was stored, and that copy is then run to its end."""
    recipe = _recipe(folder / "project", BY_TIMING)
    first = Runs(recipe, folder / "decided", folder / "logs")
    stopped = [first.stopped_when_decided("kept", signal.SIGKILL)]
    decided = first.decision("kept")

    def copied(name: str) -> Runs:
        shutil.copytree(folder / "decided", folder / name)
        return Runs(recipe, folder / name, folder / "logs")

    whole = copied("whole")
    code, at = whole.whole()
    expected = whole.bytes_of()
    differing, left, codes = set[str](), list[str](), [code]
    for number, moment in enumerate(moments(at, ("training", "training", "measuring"), SIGNALS, seed=13)):
        again = copied(f"killed-{number}")
        stopped.append(again.stopped(*moment))
        codes.append(again.whole()[0])
        found = again.bytes_of()
        differing |= {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
        left += [*again.left(), *again.partial()]
    return {
        "decision": decided,
        "stopped": [dataclasses.asdict(one) for one in stopped],
        "exit_codes": codes,
        "files": len(expected),
        "differing": sorted(differing),
        "left": left,
    }


def _judge_decided(raw: Raw) -> Outcome:
    codes = {number.name: code for number, code in CODES.items()}
    as_told = [one for one in raw["stopped"] if one["exit_code"] == codes[one["signal"]]]
    holds = len(as_told) == len(raw["stopped"]) == 4 and raw["files"] > 3 and raw["decision"] is not None
    # 0 or 3: how fast the student is, is measured each time
    holds = holds and not (raw["differing"] or raw["left"]) and set(raw["exit_codes"]) <= {0, 3}
    return Outcome(
        holds,
        f"{len(as_told)} of {len(raw['stopped'])} ended by their signal's exit code; of {raw['files']} files differ: "
        f"{', '.join(raw['differing']) or 'none'}; left: {', '.join(raw['left']) or 'nothing'}",
        "the same bytes as the run that went on undisturbed from the stored decision, and nothing left",
    )


def _measure_network(folder: Path) -> Raw:
    if (reason := cannot_watch()) is not None:
        raise RuntimeError(reason)
    watch, home, project = NetworkWatch(folder), folder / "home", copy_case("plain", folder / "project")
    home.mkdir()
    unset = {*telemetry.VARIABLES, "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {**watch.environment, "HOME": str(home), "OMP_NUM_THREADS": "1"}

    def run(*command: object) -> list[sockets.Bound]:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=project,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with sockets.Looking(process.pid) as looking:
            codes.append(process.wait(1200))
        return [one for one in looking.found if not one.is_loopback]

    codes: list[int] = []
    kdc = ("-m", "kdc.cli.main")
    bound = run(*kdc, "compress", "recipe.yaml", "--out", "run", "--set", SHARED)
    for target in ("cpu-ort", "cpu-openvino"):
        bound += run(*kdc, "profile", "run/student.onnx", "--target", target, "--seconds", "1", "--no-cold")
    acts = watch.acts()
    beyond = [f"{act.what} {act.where}" for act in watch.beyond_this_machine()]
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    # That the watch would have seen it: the same library in a process that is not kdc's.
    run("-c", "import socket\ntry: socket.getaddrinfo('asked.invalid', 80)\nexcept OSError: pass")
    run("-c", "import socket; one = socket.socket(); one.bind(('', 0)); one.listen()")
    return {
        "exit_codes": codes[:3],
        "listening_beyond_loopback": [f"{one.address}:{one.port} {one.command}" for one in bound],
        "meeting_on_loopback": len({act.pid for act in acts if act.what == "listen-loopback"}),
        "beyond_this_machine": beyond,
        "left_in_home": left,
        "watch_sees": sorted({act.what for act in watch.acts()[len(acts) :]}),
    }


def _judge_network(raw: Raw) -> Outcome:
    nothing = not (raw["listening_beyond_loopback"] or raw["beyond_this_machine"] or raw["left_in_home"])
    watched = raw["watch_sees"] == ["listen", "lookup"] and raw["meeting_on_loopback"] == 2
    ran = raw["exit_codes"][0] in (0, 3) and raw["exit_codes"][1:] == [0, 0]

    def told(name: str) -> str:
        return ", ".join(raw[name]) or "none"

    return Outcome(
        nothing and watched and ran,
        f"listening beyond loopback: {told('listening_beyond_loopback')}; looked up or connected to: "
        f"{told('beyond_this_machine')}; files in the home folder: {told('left_in_home')}; processes that met on loopback: "
        f"{raw['meeting_on_loopback']}; the same watch on processes that do both saw {told('watch_sees')}",
        "none, none, none; 2; listen, lookup",
    )


def _measure_signals(folder: Path) -> Raw:
    recipe = _recipe(folder / "project", BY_COUNTING)
    stopped = []
    for number in SIGNALS:
        runs = Runs(recipe, folder / number.name, folder / "logs")  # all with one temporary folder
        stopped.append(dataclasses.asdict(runs.stopped("training", number, 1.0)))
    passes = [sys.executable, "-m", "kdc.cli.main", "passes"]
    environment = {**os.environ, "TMPDIR": str(runs.temporary)}
    subprocess.run(passes, check=True, stdout=subprocess.DEVNULL, env=environment)
    return {"stopped": stopped, "left_after_the_next_command": runs.left()}


def _judge_signals(raw: Raw) -> Outcome:
    found = [(one["exit_code"], len(one["left"]), one["alive"]) for one in raw["stopped"]]
    left = len(raw["left_after_the_next_command"])
    return Outcome(
        found[:2] == [(143, 0, 0), (129, 0, 0)] and found[2][0] == -9 and found[2][2] == left == 0,
        "; ".join(
            f"{one['signal']}: exit {code}, {entries} folders left, {alive} processes alive"
            for one, (code, entries, alive) in zip(raw["stopped"], found, strict=True)
        )
        + f"; {left} folders after the next command",
        "exit 143 and nothing left; exit 129 and nothing left; after SIGKILL nothing left by the next command",
    )


CLAIMS = [
    Claim(
        "network_stays_on_this_machine",
        "A run whose distillation has two processes listens on loopback alone; no process of it, nor of profiling with ONNX "
        "Runtime and OpenVINO, looks up a host or leaves telemetry's files in the home folder.",
        f"kdc compress recipe.yaml --out run --set '{SHARED}' & watch ss --listening --tcp --processes",
        _measure_network,
        _judge_network,
    ),
    Claim(
        "signals_clean_up",
        "SIGTERM and SIGHUP clean up and end with 143 and 129; what SIGKILL leaves is swept by the next command.",
        "kdc compress recipe.yaml --out run & sleep 20; kill -TERM $!; wait $!; echo $?; ls /tmp/kdc-*",
        _measure_signals,
        _judge_signals,
    ),
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
