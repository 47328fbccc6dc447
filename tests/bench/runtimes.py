"""Every reference model on every runtime that is here: whether it builds, whether it answers as torch does, how fast.

    python tests/bench/runtimes.py

prints the table of docs/targets.md; `--targets cpu-litert` prints those rows alone, for LiteRT wants an environment of its
own. The latency is batch 1, one thread; "times" is that of the float32 file in ONNX Runtime over it, a geometric mean over
rounds with its 95% t interval. In each round every file is timed once, in a fresh process of its own and in random order,
so that a drift of the machine falls on all.
"""

import argparse
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import torch

from kdc.core.budget import Budget
from kdc.core.contract import Context
from kdc.core.errors import KdcError, TargetError
from kdc.distill.teacher import predict
from kdc.driver.evaluate import engines, run_over
from kdc.driver.inputs import load
from kdc.driver.recipe import load_recipe
from kdc.numerics.stats import ratio_interval
from passes import PASSES
from passes.export.lower import lower
from passes.quantize import Quantize
from passes.simplify import Simplify
from targets.device import load_device, names
from targets.parts import described_by
from targets.quick import quick_latencies
from targets.runtime import runtime_of

RECIPES = ("models/digits/recipe.yaml", "models/fashion_mnist/recipe.yaml")
REFERENCE = "cpu-ort"
CALIBRATION, COMPARED = 500, 500


def forms(inputs, device):
    """The teacher in each number format that the device has, with its answers in torch."""
    yield "float32", inputs.teacher
    if device.quantization is not None:
        data = replace(inputs.data, calibration=inputs.data.calibration[:CALIBRATION])
        context = Context(
            step="quantize", device=device, task=inputs.task, data=data, teacher=inputs.teacher.model, budget=Budget(),
            seed=0, work=None, cache=None, emit=lambda event: None, teacher_cost=None, forecasts=None,
        )  # fmt: skip
        yield "int8", Quantize().apply(inputs.teacher, Quantize().decide(inputs.teacher, context))


def built(artifact, device, folder):
    """The device's file. Raises: TargetError where the runtime cannot have it."""
    folder.mkdir()
    simplify = Simplify()
    model = artifact.with_model(lower(artifact, device.opset))
    onnx_ir.save(simplify.apply(model, simplify.decide(model, None)).model, folder / "model.onnx")
    return runtime_of(device).build(folder / "model.onnx", folder, device)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--targets", nargs="+", default=names(), help="beside the reference; default: all")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(os.cpu_count() or 1)
    print("| model | target | format | builds | largest difference | accuracy, test % | ms | times [95%] |")
    print("|---|---|---|---|---|---|---|---|")
    for recipe in RECIPES:
        inputs = load(load_recipe(Path(recipe), {}, [], PASSES))
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for row in rows(inputs, Path(folder), arguments.rounds, arguments.targets):
                print("| " + " | ".join([Path(recipe).parent.name, *row]) + " |", flush=True)


def rows(inputs, folder, rounds, targets):
    """One row a target and number format."""
    test = inputs.data.test[:COMPARED]
    samples = [tensor[:32].numpy() for tensor in test.inputs]
    found, timed = [], {}
    for target in dict.fromkeys((REFERENCE, *targets)):
        device = load_device(target)
        try:
            runtime = runtime_of(device)
        except TargetError as error:
            found.append([(target, "–"), [f"no: {str(error).splitlines()[0]}", "", ""]])
            continue
        for name, artifact in forms(inputs, device):
            key = (target, name)
            try:
                file = built(artifact, device, folder / f"{target}-{name}")
            except KdcError as error:
                found.append([key, [f"no: {str(error).splitlines()[0]}", "", ""]])
                continue
            reason = runtime.cannot_run(device)
            if reason is None and device.architecture not in ("", os.uname().machine):
                reason = f"it is {device.architecture}"
            if reason is not None:
                found.append([key, [f"yes; not run: {reason}", "", ""]])
                continue
            answers, _ = run_over(engines(file, device, len(test)), test, device.batch)
            expected = predict(artifact.model, test).numpy()
            off = float(np.abs(answers - expected).max() / np.sqrt(np.mean(expected**2)))
            accuracy = 100 * float(inputs.task.scores(answers, test.labels.numpy()).mean())
            assert described_by(file, runtime)
            found.append([key, ["yes", f"{off:.1g}", f"{accuracy:.2f}"]])
            timed[key] = file, device
    ms = {key: [] for key in timed}
    generator = np.random.default_rng(0)
    for _ in range(rounds):
        for index in generator.permutation(len(timed)):
            key = list(timed)[index]
            file, device = timed[key]
            ms[key].append(quick_latencies([file], device, samples, seconds=0.5)[0])
    reference = np.log(ms[REFERENCE, "float32"])
    for (target, name), cells in found:
        times = ["", ""]
        if (target, name) in ms:
            own = np.log(ms[target, name])
            ratio = ratio_interval(reference - own)
            times = [f"{np.exp(own.mean()):.4f}", f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"]
        yield [target, name, *cells, *times]


if __name__ == "__main__":
    main()
