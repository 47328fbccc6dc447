"""Which ranking tells before training which student will be best after distillation: a table, and what search finds.

    python tests/bench/ranking.py table            # distil 40 random students twice each, write ranking_digits.json
    python tests/bench/ranking.py tau              # Kendall's tau of each ranking with the distilled accuracy
    python tests/bench/ranking.py find             # what `search` finds within the MACs of the table's best student

Accuracy is over the validation and test splits of digits together (800 samples), the mean of two seeds: a table of random
students chooses nothing that ships. `tau` also prints how many students a minute each ranking scores.
"""

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kdc.core.budget import Budget
from kdc.core.contract import Context, named_seed
from kdc.core.data import Split
from kdc.core.observe import Note
from kdc.distill.loop import train
from kdc.distill.settings import Training
from kdc.distill.teacher import predict
from kdc.driver.inputs import load
from kdc.driver.recipe import load_recipe
from passes import PASSES, Search
from passes.search.members import Members
from passes.search.ranking import Reference, diswot
from passes.search.spaces import PlainSpace, PlainStudent, describe

RECIPE = Path(__file__).parents[2] / "models" / "digits" / "recipe.yaml"
TABLE = Path(__file__).with_name("ranking_digits.json")
SPACE = PlainSpace(depth=(2, 6), channels=(8, 12, 16, 24, 32, 48, 64), reductions=(1, 3))
TRAINING = Training(epochs=30, batch=64, learning_rate=4e-3)
STUDENTS, SEEDS = 40, (0, 1)


def context_of(inputs, folder, seed, step, budget=None):
    return Context(
        step=step, device=inputs.device, task=inputs.task, data=inputs.data, teacher=inputs.teacher.model,
        budget=budget or Budget(), seed=seed, work=folder / f"{step}-{seed}", cache=folder / f"cache-{seed}",
        emit=lambda event: print(event.text, flush=True) if isinstance(event, Note) else None,
        teacher_cost=None, forecasts=None,
    )  # fmt: skip


def accuracy(inputs, folder, student, seed):
    """Points of a student after distillation with this seed, on validation and test together."""
    model = Members(inputs.teacher, (SPACE,), seed).build(student)
    context = context_of(inputs, folder, seed, f"table.{describe(student).replace(' ', '-').replace('/', 's')}")
    train(model, context, TRAINING)
    both = Split(
        tuple(map(torch.cat, zip(inputs.data.validation.inputs, inputs.data.test.inputs, strict=True))),
        torch.cat([inputs.data.validation.labels, inputs.data.test.labels]),
    )
    return 100 * float(inputs.task.scores(predict(model, both).numpy(), both.labels.numpy()).mean())


def table(inputs, folder):
    members = Members(inputs.teacher, (SPACE,), 0)
    draw = random.Random(named_seed("ranking", "table"))
    rows = []
    while len(rows) < STUDENTS:
        student = members.draw(draw)
        if any(row["student"] == student.model_dump(mode="json") for row in rows):
            continue
        parameters, macs = members.size(members.build(student))
        points = [accuracy(inputs, folder, student, seed) for seed in SEEDS]
        rows.append(
            {"student": student.model_dump(mode="json"), "parameters": parameters, "macs": macs, "points": points}
        )
        print(f"{len(rows)}: {describe(student)}: {macs} MACs, {points}", flush=True)
    TABLE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def kendall(a, b):
    """Kendall's tau-b. Source: Kendall 1945, Biometrika 33, the treatment of ties in ranking problems."""
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i in range(len(a)) for j in range(i)]
    agree = sum(x * y for x, y in signs)
    return agree / math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))


def tau(inputs):
    rows = json.loads(TABLE.read_text())
    points = [float(np.mean(row["points"])) for row in rows]
    students = [PlainStudent.model_validate(row["student"]) for row in rows]
    some = inputs.data.train[: Search().samples]
    rankings = {"parameters": [row["parameters"] for row in rows], "macs": [row["macs"] for row in rows]}
    for seed in SEEDS:
        members = Members(inputs.teacher, (SPACE,), seed)
        began = time.monotonic()
        reference = Reference.of(inputs.teacher.model, some.inputs, some.labels)
        rankings[f"diswot, seed {seed}"] = [diswot(members.build(student), reference) for student in students]
        print(f"diswot scores {60 * len(students) / (time.monotonic() - began):.0f} students a minute")
        rankings[f"random, seed {seed}"] = list(np.random.default_rng(seed).random(len(rows)))
    first, second = ([row["points"][i] for row in rows] for i in (0, 1))
    print(f"points: {min(points):.2f} to {max(points):.2f}; tau of the two seeds' points {kendall(first, second):.2f}")
    for name, scores in rankings.items():
        print(f"{name:16} tau {kendall(scores, points):+.2f}")


def find(inputs, folder, ranking):
    rows = json.loads(TABLE.read_text())
    best = max(rows, key=lambda row: float(np.mean(row["points"])))
    settings = Search(
        spaces=(SPACE,), ranking=ranking, headroom=0.0, population=24, generations=3, finalists=8, epochs=10,
        training=TRAINING,
    )  # fmt: skip
    context = context_of(inputs, folder, 0, "find", Budget(macs=best["macs"]))
    context.work.mkdir(parents=True)
    began = time.monotonic()
    found = settings.decide(inputs.teacher, context).student
    minutes = (time.monotonic() - began) / 60
    points = [accuracy(inputs, folder, found, seed) for seed in SEEDS]
    members = Members(inputs.teacher, (SPACE,), 0)
    _, macs = members.size(members.build(found))
    there = PlainStudent.model_validate(best["student"])
    print(f"table's best: {describe(there)}: {best['macs']} MACs, {np.mean(best['points']):.2f} {best['points']}")
    print(f"found in {minutes:.1f} minutes: {describe(found)}: {macs} MACs, {np.mean(points):.2f} {points}")
    print(f"distance: {np.mean(best['points']) - np.mean(points):.2f} points")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "tau", "find"))
    parser.add_argument("--ranking", default=Search().ranking)
    options = parser.parse_args()
    inputs = load(load_recipe(RECIPE, {}, [], PASSES))
    with tempfile.TemporaryDirectory() as scratch:
        match options.what:
            case "table":
                table(inputs, Path(scratch))
            case "tau":
                tau(inputs)
            case "find":
                find(inputs, Path(scratch), options.ranking)


if __name__ == "__main__":
    main()
