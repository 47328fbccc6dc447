"""An epoch of distillation with a warm cache beside an epoch of plain cross-entropy; and, for comparison, a live teacher.

    python tests/bench/warm_cache.py --turns 20

A small convolutional student and a wide teacher on pictures [1, 28, 28] with augmentation (random shifts), two views. Each
turn has one training of each sort, in an order that alternates (ABBA ...); what counts is the time of its second and
third epoch, from the view to the last step, by the clock and by the processor. The ratio's interval is over the turns; a
turn in which something else ran shows in the clock's ratio alone. The goal: distillation with a warm cache costs at most
1.10 times plain cross-entropy. The teacher is asked live in the first turns alone, to show what the cache saves.
"""

import argparse
import dataclasses
import math
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from kdc.core.budget import Budget
from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.core.observe import Epoch
from kdc.distill.answer_settings import AnswerForm
from kdc.distill.loop import train
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.numerics.stats import ratio_interval
from kdc.tasks.classification import Classification
from targets.device import load_device

GOAL = 1.10


def network(width, blocks, classes):
    """Convolutions of 3 x 3, BatchNorm and ReLU; every other one halves the picture."""
    layers, inputs = [], 1
    for number in range(blocks):
        layers += [nn.Conv2d(inputs, width, 3, 1 + number % 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def shifted(images, generator):
    """Each picture moved by up to two pixels."""
    moved = torch.zeros_like(images)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    for number, (x, y) in enumerate(torch.randint(0, 5, (len(images), 2), generator=generator).tolist()):
        moved[number] = padded[number, :, x : x + images.shape[2], y : y + images.shape[3]]
    return moved


def seconds(sort, arguments, folder):
    """Of the second and the third epoch of this sort: by the clock, and of the processor."""
    generator = torch.Generator().manual_seed(0)

    def split(n):
        images = torch.randn((n, 1, 28, 28), generator=generator)
        return Split((images,), torch.arange(n) % arguments.classes)

    torch.manual_seed(0)
    wall, worked, before = [], [], time.process_time()

    def watch(event):
        nonlocal before
        if isinstance(event, Epoch):
            now = time.process_time()  # the validation split is too small to count
            wall.append(event.seconds)
            worked.append(now - before)
            before = now

    data = Splits(split(arguments.samples), split(16), split(16), split(16), "bench", augment=shifted)
    context = Context(
        step="bench", device=load_device("cpu-ort"), task=Classification(), data=data,
        teacher=network(arguments.teacher_width, 5, arguments.classes).eval().requires_grad_(False), budget=Budget(),
        seed=0, work=folder / "work", cache=folder / "cache",
        emit=watch,
        teacher_cost=None, forecasts=None, cache_bytes=0 if sort == "live" else None,
    )  # fmt: skip
    objectives = (HardLabels(weight=1.0),) if sort == "plain" else (HardLabels(), SoftTargets())
    training = Training(
        epochs=3,
        views=2,
        batch=128,
        objectives=objectives,
        checkpoint_seconds=3600.0,
        answers=AnswerForm(kind=arguments.form),
    )
    with tempfile.TemporaryDirectory() as work:
        train(
            network(arguments.student_width, 5, arguments.classes),
            dataclasses.replace(context, work=Path(work)),
            training,
        )
    return sum(wall[1:]), sum(worked[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=600.0, help="no turn begins after so many")
    parser.add_argument("--live-turns", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--student-width", type=int, default=16)
    parser.add_argument("--teacher-width", type=int, default=96)
    parser.add_argument("--form", choices=("auto", "exact", "half", "sparse"), default="auto")
    arguments = parser.parse_args()
    ratios = {"the clock": [], "the processor": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for sort in ("plain", "warm"):
            seconds(sort, arguments, folder)  # fills the cache, and warms the rest up
        size = sum(path.stat().st_size for path in folder.rglob("*.answers"))
        began = time.monotonic()
        for turn in range(arguments.turns):
            if turn >= 2 and time.monotonic() - began > arguments.seconds:
                break
            sorts = ("plain", "warm") if turn % 2 == 0 else ("warm", "plain")
            spent = {sort: seconds(sort, arguments, folder) for sort in sorts}
            for values, plain, warm in zip(ratios.values(), spent["plain"], spent["warm"], strict=True):
                values.append(math.log(warm / plain))
            told = f"turn {turn + 1}: cross-entropy {spent['plain'][0]:.3f} s, warm cache {spent['warm'][0]:.3f} s"
            if turn < arguments.live_turns:
                live = seconds("live", arguments, folder)[0] / spent["plain"][0]
                told += f", live teacher {live:.2f} times cross-entropy"
            print(told, flush=True)
    print(f"two views of {arguments.samples} samples take {size / 1e6:.2f} MB")
    for by, values in ratios.items():
        ratio = ratio_interval(values)
        print(f"warm cache / cross-entropy, by {by}: {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")
    print(f"within {GOAL}" if ratio_interval(ratios["the clock"]).high <= GOAL else f"NOT within {GOAL}")


if __name__ == "__main__":
    main()
