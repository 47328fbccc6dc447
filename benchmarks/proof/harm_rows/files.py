"""Claims about files: what a model's file may name, what is overwritten, names that others share, damaged stores."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from rows import ROOT, Claim, Outcome, Raw
from running_cases import copy_case, run_kdc, run_python

sys.path += [str(ROOT / "tests" / "targets"), str(ROOT / "tests" / "driver")]

from damages import DAMAGES
from hostile import BROKEN, HOLDERS, LOCATIONS, broken, external, folder_with, hostile, saved

BY_COMMAND = ("one folder up", "up by a detour", "absolute", "through a link", "through a linked folder")
REFUSED = 2


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# What an ONNX file may name.


def _external(folder: Path) -> Raw:
    from kdc.core.errors import UserError
    from targets.door.admit import admit

    found = {}
    for kind in (*BY_COMMAND, *BROKEN):
        place = folder / kind.replace(" ", "_")
        place.mkdir()
        path = hostile(place, kind) if kind in LOCATIONS else broken(place, kind)
        done = run_kdc(place, "build", path, "--out", "out")
        left = [str(one.relative_to(place)) for one in place.rglob("*.bin") if "model" not in one.parts]
        found[f"build, {kind}"] = {"exit": done.returncode, "beside": left, "out": (place / "out").exists()}
    for words in (("profile",), ("verify", "--bisect")):
        path = hostile(folder / words[0], "one folder up")
        found[f"{words[0]}, one folder up"] = {
            "exit": run_kdc(folder, *words, path).returncode,
            "beside": ["secret.bin"],
        }
    inside = {}
    for kind in LOCATIONS:
        for holder, made in HOLDERS.items():
            place = folder / f"{len(inside)}"
            location = str(place / "secret.bin") if LOCATIONS[kind] == "ABSOLUTE" else LOCATIONS[kind]
            try:
                admit(saved(folder_with(place), made(external(location))))
            except UserError:
                inside[f"{holder}, {kind}"] = True
            else:
                inside[f"{holder}, {kind}"] = False
    return {
        "commands": found,
        "admitted": [name for name, refused in inside.items() if not refused],
        "forms": len(inside),
    }


def _external_judged(raw: Raw) -> Outcome:
    commands = raw["commands"]
    wrong = [
        name
        for name, done in commands.items()
        if done["exit"] != REFUSED or done.get("out") or any(one != "secret.bin" for one in done["beside"])
    ]
    return Outcome(
        not wrong and not raw["admitted"],
        f"{len(commands) - len(wrong)} of {len(commands)} commands refused with exit 2 and nothing written; "
        f"{raw['forms'] - len(raw['admitted'])} of {raw['forms']} forms of names turned away",
        "all of them",
    )


# What is overwritten.


def _overwriting(folder: Path) -> Raw:
    case = copy_case("plain", folder)
    model = saved(case, HOLDERS["initializer"](external("w.bin")))
    (case / "w.bin").write_bytes(bytes(16))
    mine = folder / "mine"
    mine.mkdir()
    for name in ("page.html", "log.txt", "m.onnx"):
        (mine / name).write_text("mine")
    for name, target in (("link", mine), ("dangling", folder / "nothing")):
        (folder / name).symlink_to(target)
    recipe = (case / "recipe.yaml", "--quiet", "--out")
    before = {path.name: _sha(path) for path in mine.iterdir()}
    commands = {
        "build --out LINK": ("build", model, "--out", folder / "link"),
        "build --out DANGLING LINK": ("build", model, "--out", folder / "dangling"),
        "build --out MINE": ("build", model, "--out", mine),
        "compress --out LINK": ("compress", *recipe, folder / "link"),
        "compress --out DANGLING LINK": ("compress", *recipe, folder / "dangling"),
        "compress --out MINE": ("compress", *recipe, mine),
        "compress --log MINE": ("compress", *recipe, folder / "run", "--log", mine / "log.txt"),
        "compress --teacher-cache LINK": ("compress", *recipe, folder / "run", "--teacher-cache", folder / "link"),
        "profile --html MINE": ("profile", model, "--html", mine / "page.html"),
        "targets calibrate --out MINE": ("targets", "calibrate", "cpu-ort", "--out", mine / "log.txt"),
    }
    exits = {name: run_kdc(case, *words).returncode for name, words in commands.items()}
    kept = before == {path.name: _sha(path) for path in mine.iterdir()} and not (folder / "nothing").exists()
    forced = run_kdc(case, "build", model, "--out", mine, "--force").returncode
    return {"exits": exits, "kept": kept, "forced": forced, "overwritten": _sha(mine / "m.onnx") == _sha(model)}


def _overwriting_judged(raw: Raw) -> Outcome:
    wrong = [name for name, code in raw["exits"].items() if code != REFUSED]
    return Outcome(
        not wrong and raw["kept"] and raw["forced"] == 0 and raw["overwritten"],
        f"exit 2 by {len(raw['exits']) - len(wrong)} of {len(raw['exits'])} commands"
        + (f" (not by {', '.join(wrong)})" if wrong else "")
        + f"; the user's files {'as they were' if raw['kept'] else 'CHANGED'}; with --force exit {raw['forced']}",
        "exit 2 by all, the user's files as they were, and --force overwrites",
    )


# Names that others share.

_WATCHED = """
import json, os, sys
sys.argv = ["kdc", *sys.argv[2:]]
seen, base = set(), os.path.realpath(os.environ["TMPDIR"])
def note(event, given):
    path = {"open": 0, "os.mkdir": 0, "os.rename": 1}.get(event)
    if path is None or not isinstance(given[path], (str, bytes)) or (event == "open" and not given[2] & 3):
        return
    where = os.path.realpath(os.path.dirname(os.fsdecode(given[path])))
    if where in (base, "/tmp", "/var/tmp", "/dev/shm"):
        seen.add(os.path.basename(os.fsdecode(given[path])))
sys.addaudithook(note)
from kdc.cli.main import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
print("SEEN " + json.dumps([code, sorted(seen)]))
"""


def _names(folder: Path) -> Raw:
    from targets.remote.agent import lock_path

    (folder / "watched.py").write_text(_WATCHED)
    (folder / "tmp").mkdir()
    model = saved(folder_with(folder / "m"), HOLDERS["initializer"](external("weights.bin")))
    runs: dict[str, list[list[str]]] = {}
    exits = []
    for name, words in {
        "build": ("build", model, "--out", folder / "out"),
        "profile": ("profile", model, "--seconds", "0.1", "--no-cold"),
        "bisect": ("verify", "--bisect", model),
    }.items():
        for _ in range(2):
            done = run_python(folder, "watched.py", "-", *words, TMPDIR=str(folder / "tmp"), PYTHONPATH=str(ROOT))
            code, seen = json.loads(done.stdout.partition("SEEN ")[2] or "[1, []]")
            exits.append(code)
            runs.setdefault(name, []).append(seen)
    os.environ.pop("KDC_DEVICE_LOCK", None)
    return {"runs": runs, "exits": exits, "lock": lock_path(), "user": os.geteuid()}


def _names_judged(raw: Raw) -> Outcome:
    twice = sorted({name for first, second in raw["runs"].values() for name in {*first} & {*second}})
    count = sum(len(seen) for run in raw["runs"].values() for seen in run)
    own = f"kdc-{raw['user']}/" in raw["lock"]
    return Outcome(
        not twice and count > 0 and own and not any(raw["exits"]),
        f"{count} names in shared temporary folders, {len(twice)} of them used by two runs; the device's lock is "
        f"{raw['lock']}",
        "no name of two runs, and a lock in the user's own folder",
    )


# Damaged stores.


def _damaged(folder: Path) -> Raw:
    case = copy_case("plain", folder)
    words = (
        "compress", "recipe.yaml", "--out", "run", "--quiet",
        "--set", "passes=[{prune: {keep_macs: 0.5, training: {epochs: 2, batch: 100}}}]",
    )  # fmt: skip

    def student() -> list[str | int]:
        done = run_kdc(case, *words)
        return [done.returncode, *(_sha(case / "run" / name) for name in ("weights.safetensors", "student.onnx"))]

    first = student()
    again, damaged = [], 0
    for turn in range(3):
        files = sorted(path for path in (case / "run" / ".kdc").rglob("*") if path.is_file())
        for index, path in enumerate(files):
            list(DAMAGES.values())[(index + 3 * turn) % len(DAMAGES)](path)
            damaged += 1
        shutil.rmtree(case / "run" / ".kdc" / "store" / "work", ignore_errors=True)
        (case / "run" / ".kdc" / "store" / "work").write_text("")
        again.append(student())
    return {"first": first, "again": again, "damaged": damaged}


def _damaged_judged(raw: Raw) -> Outcome:
    same = sum(one == raw["first"] for one in raw["again"])
    return Outcome(
        same == len(raw["again"]) and raw["first"][0] in (0, 3),
        f"{raw['damaged']} files damaged in {len(raw['again'])} turns; the same student and exit code "
        f"({raw['first'][0]}) after {same} of them",
        "after all of them",
    )


CLAIMS: list[Claim] = [
    Claim(
        "external_data_stays_inside",
        "A model's external data are read from its own folder and written into --out, and nowhere else; cyclic, empty and "
        "truncated models are refused by build too.",
        "kdc build m.onnx --out out  # whose weight lies in ../secret.bin",
        _external,
        _external_judged,
    ),
    Claim(
        "no_link_is_followed_and_nothing_overwritten",
        "Links are not followed for writing, and what kdc did not write is overwritten by --force alone.",
        "kdc build m.onnx --out link; kdc profile m.onnx --html mine.html; kdc compress recipe.yaml --out run --log mine",
        _overwriting,
        _overwriting_judged,
    ),
    Claim(
        "no_shared_names",
        "No name in a folder that users share can be foreseen, and a device's lock lies in a folder of its user's.",
        "kdc profile m.onnx  # twice, and the names that it makes in $TMPDIR compared",
        _names,
        _names_judged,
    ),
    Claim(
        "damaged_store_is_made_anew",
        "Whatever becomes of the files in a run's private folder, the next command ends with the same student.",
        "kdc compress recipe.yaml --out run; damage every file in run/.kdc; kdc compress recipe.yaml --out run",
        _damaged,
        _damaged_judged,
    ),
]
