"""`kdc profile` beside a bare loop, as onnxruntime_perf_test's: one session, one thread, runs back to back, the median.

    python tests/bench/bare_loop.py [FILE.onnx] --times 5

Without a file it is a ResNet-18 with random weights on [1, 3, 224, 224], made with torch. The two take turns, each in
processes of its own, and the medians over turns should agree within 3%.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime

from kdc.core.spec import DeviceFile
from targets.device import load_device
from targets.measure import Settings, compare

WARM_UP, RUNS = 20, 200


def bare(path, core):
    """The median of runs in milliseconds; nothing of kdc's is in the loop."""
    os.sched_setaffinity(0, {core})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {one.name: [size if isinstance(size, int) else 1 for size in one.shape] for one in session.get_inputs()}
    feed = {name: np.random.default_rng(0).standard_normal(shape, np.float32) for name, shape in shapes.items()}
    spent = []
    for _ in range(WARM_UP + RUNS):
        start = time.perf_counter()
        session.run(None, feed)
        spent.append(time.perf_counter() - start)
    return 1e3 * median(spent[WARM_UP:])


def resnet18(path):
    """Export a network of ResNet-18's shape (He et al. 2016, arXiv:1512.03385, table 1)."""
    import torch
    from torch import nn

    def conv(inputs, outputs, kernel, stride):
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.body = nn.Sequential(conv(inputs, outputs, 3, stride), nn.ReLU(), conv(outputs, outputs, 3, 1))
            self.skip = conv(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x):
            return torch.relu(self.body(x) + self.skip(x))

    widths = [64, 64, 128, 256, 512]
    layers = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for index in range(4):
        inputs, outputs = widths[index : index + 2]
        layers += [Block(inputs, outputs, 1 if index == 0 else 2), Block(outputs, outputs, 1)]
    logging.disable(logging.WARNING)  # the exporter's, on torchvision's operators that are not there
    warnings.simplefilter("ignore", FutureWarning)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()
    torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), path, dynamo=True, external_data=False, verbose=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--times", type=int, default=5, help="turns of each")
    parser.add_argument("--seconds", type=float, default=20.0, help="the most that one turn of kdc's takes")
    parser.add_argument("--core", type=int, help="be the bare loop on this core (started by the script itself)")
    arguments = parser.parse_args()
    if arguments.core is not None:
        print(bare(str(arguments.file), arguments.core))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.file or Path(folder) / "resnet18.onnx"
        if arguments.file is None:
            resnet18(file)
        loops, profiles = [], []
        for seed in range(arguments.times):
            subject = DeviceFile(file, "onnxruntime")
            found = compare(
                subject, None, load_device("cpu-ort"), settings=Settings(seconds=arguments.seconds), seed=seed
            )
            profiles.append(found.candidate.latency.median_ms)
            core = (found.environment["pinned_to"] or [0])[-1]
            again = [sys.executable, __file__, str(file), "--core", str(core)]
            loops.append(float(subprocess.run(again, check=True, capture_output=True, text=True).stdout.split()[-1]))
            print(f"turn {seed + 1}: bare loop {loops[-1]:.4f} ms, kdc profile {profiles[-1]:.4f} ms", flush=True)
    ratio = median(profiles) / median(loops)
    print(f"bare loop {median(loops):.4f} ms, kdc profile {median(profiles):.4f} ms, ratio {ratio:.4f}")
    print("within 3%" if abs(ratio - 1) <= 0.03 else "NOT within 3%")


if __name__ == "__main__":
    main()
