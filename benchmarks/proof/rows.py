"""A proof: claims, each with what was run, what was found and what was expected; exit 1 unless all of them hold.

A short claim is measured each time. The raw results of a long one are kept in `docs/proof/AREA/NAME.json`, and its verdict
is computed from them again; `--again NAME` measures it anew. Nothing but `judge` decides whether a claim holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

Raw = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Whether a claim holds, what was found (with its interval where it is measured), and the bar it is held to."""

    holds: bool
    found: str
    expected: str


@dataclass(frozen=True)
class Claim:
    """One row of a proof.

    `measure` gets an empty folder and gives plain JSON values; `judge` makes the verdict of these alone.
    """

    name: str
    claim: str
    command: str
    measure: Callable[[Path], Raw]
    judge: Callable[[Raw], Outcome]
    long: bool = False


def prove(area: str, claims: Sequence[Claim]) -> int:
    """Print a row for each claim; the exit code of the script."""
    parser = argparse.ArgumentParser(description=f"The claims of {area}, each measured and held to its bar.")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="measure these anew")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these rows alone")
    parser.add_argument("--write", action="store_true", help=f"write the output to docs/proof/{area}.txt as well")
    options = parser.parse_args()
    names = [claim.name for claim in claims]
    assert len(set(names)) == len(names), "two claims have one name"
    if unknown := (set(options.again) | set(options.only)) - set(names):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    lines = [f"commit {_commit()}"]
    print(lines[0], flush=True)
    held, chosen = 0, [claim for claim in claims if not options.only or claim.name in options.only]
    for claim in chosen:
        outcome = _outcome(area, claim, claim.name in options.again)
        held += outcome.holds
        lines.append(_row(claim, outcome))
        print(lines[-1], flush=True)
    lines.append(f"{held} of {len(chosen)} hold")
    print(lines[-1])
    if options.write and not options.only:
        (ROOT / "docs/proof" / f"{area}.txt").write_text("\n".join(lines) + "\n")
    return 0 if held == len(chosen) else 1


def _outcome(area: str, claim: Claim, again: bool) -> Outcome:
    kept = ROOT / "docs/proof" / area / f"{claim.name}.json"
    try:
        if claim.long and kept.exists() and not again:
            return claim.judge(json.loads(kept.read_text()))
        with tempfile.TemporaryDirectory(prefix="proof-") as folder:
            raw = json.loads(json.dumps(claim.measure(Path(folder))))
        if claim.long:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(raw, indent=1) + "\n")
        return claim.judge(raw)
    except Exception as error:  # a row that breaks is a row that falls short, and the others are still to be seen
        traceback.print_exc()
        return Outcome(False, f"{type(error).__name__}: {error}", "a measurement")


def _row(claim: Claim, outcome: Outcome) -> str:
    head = "holds" if outcome.holds else "falls short"
    parts = [
        f"\n{head:<12} {claim.name}: {claim.claim}",
        f"run: {claim.command}",
        f"found: {outcome.found}",
        f"expected: {outcome.expected}",
    ]
    return "\n".join(
        textwrap.fill(part, 110, initial_indent="" if i == 0 else " " * 4, subsequent_indent=" " * 13)
        for i, part in enumerate(parts)
    ).replace(" " * 13 + "\n", "\n")


def _commit() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return result.stdout.strip()
