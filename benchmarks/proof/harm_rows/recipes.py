"""Every bundled recipe meets its budget, and the students that it left are as fast when they are timed again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from harm_rows.integers import device_file, inputs_of
from rows import ROOT, Claim, Outcome, Raw
from running_cases import run_kdc
from torch import nn

from kdc.core.spec import DeviceFile
from targets.device import load_device
from targets.measure import Settings, measure

RUNS = ROOT / "runs/proof"  # kept: a run that was killed goes on, and a whole one is read
RAW = ROOT / "docs/proof/harm/recipes_meet_their_budgets.json"
RECIPES = {
    "digits/recipe": {"min_speedup": 5, "max_drop": 1.0},
    "fashion_mnist/recipe": {"min_speedup": 7, "max_drop": 1.0},
    "fashion_mnist/recipe_search": {"min_speedup": 25, "max_drop": 1.0},
    "fashion_mnist/recipe_route": {"min_speedup": 10, "max_drop": 1.5},
}
"""The budget that each had before the verdict's rule was mended: it is not to be loosened."""
IN_README = "digits/recipe"
LONGEST_SECONDS = 3 * 3600
MACHINE = ("cpu", "cpu_family", "processor_features", "busy_percent", "load_average", "governor", "flags", "libraries")


def by_hand(teacher: str) -> nn.Module:
    """A plain stack of convolutions, as one writes it by hand; untrained, for its time alone."""
    widths = {
        "digits": ((3, 1, 16), (3, 2, 32), (3, 2, 64)),
        "fashion_mnist": ((5, 2, 16), (3, 2, 48), (3, 2, 96), (3, 1, 128)),
    }
    layers: list[nn.Module] = []
    channels = 1
    for kernel, stride, width in widths[teacher]:
        layers += [
            nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).eval()


def student_of(recipe: str) -> Path:
    """Where the student of a recipe is committed."""
    model, name = recipe.split("/")
    return ROOT / "models" / model / "students" / f"{name}.onnx"


def _row(report: Raw, code: int) -> Raw:
    limits = {one["name"]: one for one in report["budget"]}
    return {
        "exit": code,
        "met": report["met"],
        "limits": {name: limits[name]["limit"] for name in ("min_speedup", "max_drop")},
        "drop": limits["max_drop"]["value"],
        "test_drop": [report["drop"][end] for end in ("points", "low", "high")],
        "speedup": [report["speedup"][end] for end in ("ratio", "low", "high")],
        "teacher_ms": report["teacher"]["latency"]["median_ms"],
        "student_ms": report["student"]["latency"]["median_ms"],
        "size_kb": round(report["student"]["size_mb"] * 1e3, 1),
        "macs": report["student"]["macs"],
        "seconds": report["seconds"],
        "ships": next(row["name"] for row in report["steps"] if row["selected"]),
        "student_sha256": report["student"]["sha256"],
        "machine": {key: report["environment"].get(key) for key in MACHINE},
    }


def _runs(folder: Path) -> Raw:
    found = {}
    for recipe in RECIPES:
        out = RUNS / recipe
        done = run_kdc(ROOT, "compress", f"models/{recipe}.yaml", "--out", out, timeout=LONGEST_SECONDS)
        found[recipe] = _row(json.loads((out / "report.json").read_text()), done.returncode)
        student_of(recipe).parent.mkdir(exist_ok=True)
        shutil.copyfile(out / "student.onnx", student_of(recipe))
    return found


def _met(raw: Raw) -> Outcome:
    holds = set(raw) == set(RECIPES) and all(
        row["exit"] == 0 and row["met"] and row["limits"] == RECIPES[recipe] for recipe, row in raw.items()
    )
    told = [
        f"{recipe}: exit {row['exit']}, {_ratio(row['speedup'])}, drop {row['drop']:.2f}, {row['seconds']:.0f} s"
        for recipe, row in raw.items()
    ]
    asked = [f"{recipe} {limits['min_speedup']:g}x and {limits['max_drop']:g}" for recipe, limits in RECIPES.items()]
    return Outcome(holds, "; ".join(told), f"exit 0 under the budgets that they had: {', '.join(asked)} points")


def _again(folder: Path) -> Raw:
    """Each committed student beside its teacher and a student by hand, all three in the same processes."""
    found: Raw = {}
    stated = json.loads(RAW.read_text())
    for recipe in RECIPES:
        teacher = recipe.split("/")[0]
        inputs = inputs_of(teacher)
        here = folder / recipe.replace("/", "-")
        hand = inputs.teacher.with_model(by_hand(teacher))
        files = [
            DeviceFile(path, "onnxruntime")
            for path in (
                student_of(recipe), device_file(hand, "cpu-ort", here / "hand"),
                device_file(inputs.teacher, "cpu-ort", here / "teacher"),
            )
        ]  # fmt: skip
        samples = [tensor[:2000].numpy() for tensor in inputs.data.validation.inputs]
        settings = Settings(seconds=40.0, cold_seconds=0.0)
        timed = measure(files[:2], files[2], load_device("cpu-ort"), samples, settings)
        found[recipe] = {
            "stated": stated[recipe]["speedup"],
            "stated_on": stated[recipe]["machine"]["cpu_family"],
            "again": _three(timed.ratio(0)),
            "by_hand": _three(timed.ratio(1)),
            "ms": [profile.latency.median_ms for profile in (timed.baseline, *timed.candidates)],
            "machine": {key: timed.environment.get(key) for key in MACHINE},
        }
    return found


def _three(ratio) -> list[float]:
    return [ratio.ratio, ratio.low, ratio.high]


def _overlap(raw: Raw) -> Outcome:
    """README times one student; the others' files were timed beside more files in their runs, and are told alone."""
    row = raw[IN_README]
    holds = (
        set(raw) == set(RECIPES)
        and row["stated_on"] == row["machine"]["cpu_family"]
        and f"{row['stated'][1]:.2f}x – {row['stated'][2]:.2f}x" in (ROOT / "README.md").read_text()
        and row["again"][1] <= row["stated"][2]
        and row["stated"][1] <= row["again"][2]
    )
    told = [
        f"{recipe}: {_ratio(row['stated'])}, again {_ratio(row['again'])} ({row['ms'][0]:.2f} ms to {row['ms'][1]:.3f} ms; "
        f"by hand {row['ms'][2]:.3f} ms, {_ratio(row['by_hand'])})"
        for recipe, row in raw.items()
    ]
    where = ", ".join({row["machine"]["cpu_family"] for row in raw.values()})
    return Outcome(
        holds,
        f"{'; '.join(told)}; on {where}",
        "README's student: intervals that overlap, on the same family and model",
    )


def _ratio(three: list[float]) -> str:
    return f"{three[0]:.2f}x [{three[1]:.2f}, {three[2]:.2f}]"


CLAIMS = [
    Claim(
        "recipes_meet_their_budgets",
        "each bundled recipe meets the budget that it always had",
        "for r in digits/recipe fashion_mnist/{recipe,recipe_search,recipe_route}; do kdc compress models/$r.yaml --out "
        "runs/proof/$r; done",
        _runs,
        _met,
        long=True,
    ),
    Claim(
        "timed_again",
        "the student that README times, timed again beside its teacher and a student by hand, is as fast as README says; "
        "the other recipes' students are timed beside it",
        "python benchmarks/proof/harm.py --again timed_again --only timed_again",
        _again,
        _overlap,
        long=True,
    ),
]
