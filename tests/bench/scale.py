"""What channels-last, torch.compile and bfloat16 make of a training step's time, on a small convolutional network.

    python tests/bench/scale.py --turns 30 [--device cuda] [--batch 128] [--threads 1]

Every way runs a step of the loop's own parts (forward of `kdc.distill.forward`, loss, optimizer of `kdc.distill.stepping`)
in one process. In each turn all ways take their turn, so that what else the machine does falls on all alike; the ratio of a
turn is its time over plain's of the same turn. Printed is the geometric mean of the ratios with a 95% interval over turns.
"""

import argparse
import math
import time
from itertools import pairwise
from statistics import NormalDist, fmean, stdev

import torch
from torch import nn
from torch.nn import functional

from kdc.distill.forward import Forward
from kdc.distill.settings import Training
from kdc.distill.stepping import Stepper

WAYS = {
    "plain": (False, Training()),
    "channels-last": (True, Training()),
    "channels-last, compile": (True, Training(compile=True)),
    "channels-last, bf16-mixed": (True, Training(precision="bf16-mixed")),
    "channels-last, compile, bf16-mixed": (True, Training(compile=True, precision="bf16-mixed")),
}
STEPS, WARM_UP = 3, 2


def network():
    torch.manual_seed(0)
    widths = [3, 32, 64, 128]
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class Way:
    """A student that is trained in one way."""

    def __init__(self, last, training, images, labels, device):
        self.student = network().to(device)
        if last:
            self.student.to(memory_format=torch.channels_last)
        self.images, self.labels, self.device = images, labels, device
        self.forward = Forward(self.student, training, device)
        if training.compile:
            self.forward.compile((self.images,), lambda note: print(note.text, flush=True))
        self.student.train()
        self.stepper = Stepper(self.student, training, device)

    def seconds(self):
        """Of one step, the mean of a few."""
        self._wait()
        began = time.perf_counter()
        for _ in range(STEPS):
            loss = functional.cross_entropy(self.forward(self.images), self.labels)
            self.stepper.step(loss, None, 0.5)
        self._wait()
        return (time.perf_counter() - began) / STEPS

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=150.0, help="no turn begins after this time")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    images = torch.randn((arguments.batch, 3, arguments.size, arguments.size)).to(device)
    labels = (torch.arange(arguments.batch) % 10).to(device)
    ways = {name: Way(last, training, images, labels, device) for name, (last, training) in WAYS.items()}
    print(f"torch {torch.__version__}, {device}, {arguments.threads} threads, made in {time.monotonic() - began:.0f} s")
    for way in ways.values():
        for _ in range(WARM_UP):
            way.seconds()
    turns = []
    while len(turns) < arguments.turns and time.monotonic() - began < arguments.seconds:
        turns.append({name: way.seconds() for name, way in ways.items()})
    plain = fmean(turn["plain"] for turn in turns)
    print(f"{len(turns)} turns of {STEPS} steps of {arguments.batch} images; plain {1e3 * plain:.1f} ms a step")
    for name in list(WAYS)[1:]:
        logs = [math.log(turn[name] / turn["plain"]) for turn in turns]
        half = NormalDist().inv_cdf(0.975) * stdev(logs) / math.sqrt(len(logs))
        low, middle, high = (math.exp(fmean(logs) + sign * half) for sign in (-1, 0, 1))
        print(f"{name}: {middle:.3f} of plain's time, 95% interval {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
