"""Claims on what is taken from the store, and what is done again."""

import json
from pathlib import Path

from rows import Claim, Outcome, Raw
from running_cases import copy_case, run_kdc


def measure_stale_budget(folder: Path) -> Raw:
    """The case's three commands, and what `kdc why` says before the second."""
    case = copy_case("stale_budget", folder)
    limited = ("compress", "recipe.yaml", "--max-macs", "30000", "--out")
    first = run_kdc(case, "compress", "recipe.yaml", "--out", "run")
    why = run_kdc(case, "why", "recipe.yaml", "--max-macs", "30000", "--out", "run", "--step", "prune")
    again, fresh = (run_kdc(case, *limited, out) for out in ("run", "fresh"))
    reports = [json.loads((case / out / "report.json").read_text()) for out in ("run", "fresh")]
    return {
        "codes": [first.returncode, again.returncode, fresh.returncode],
        "why": why.stdout.split("\n"),
        "from_store": [line for line in (again.stdout + again.stderr).splitlines() if "stored, not done again" in line],
        "macs": [report["student"]["macs"] for report in reports],
        "same_student": len({(case / out / "weights.safetensors").read_bytes() for out in ("run", "fresh")}) == 1,
    }


def judge_stale_budget(raw: Raw) -> Outcome:
    """Holds where the second command pruned anew and ended as the third."""
    named = "  budget.macs: 60000 → 30000" in raw["why"]
    pruned = not any("] prune: stored" in line for line in raw["from_store"])
    _, again, fresh = raw["codes"]
    again_macs, fresh_macs = raw["macs"]
    return Outcome(
        named and pruned and raw["same_student"] and again == fresh and max(again_macs, fresh_macs) <= 30000,
        f"kdc why {'names' if named else 'does not name'} budget.macs; the second command "
        f"{'prunes anew' if pruned else 'reuses the prune'} and ends with exit {again} and {again_macs:,} MACs, the third "
        f"with exit {fresh} and {fresh_macs:,}; {'the same student' if raw['same_student'] else 'another student'}",
        "kdc why names budget.macs; pruned anew; both at most 30,000 MACs, the same exit code, the same student",
    )


CLAIMS: list[Claim] = [
    Claim(
        "stale_budget",
        "a stored prune is not reused under another budget",
        "in tests/cases/stale_budget: kdc compress recipe.yaml --out run; kdc compress recipe.yaml --max-macs 30000 --out "
        "run; kdc compress recipe.yaml --max-macs 30000 --out fresh",
        measure_stale_budget,
        judge_stale_budget,
    )
]
