"""The profiler's own test: a file against itself, and against a copy that truly takes 5% longer.

    python tests/bench/ab_noise.py --aa 200 --slower 50 --busy 50

`--aa`: A/A runs on the machine as it is; told apart at most 5% of the time. `--slower`: the copy against the file; found
slower at least 9 times of 10. `--busy`: the copy against the file, and the file against itself, while a busy loop loads
one core; the verdict is right or "no detectable difference", never wrong. What the copy truly costs is measured first.
Prints, for each, how often each verdict was given ("none": no detectable difference), the range of the ratios, the median
half-width of their intervals, how many reached the wanted precision in time, and whether the claim held.
`--times 2` gives all of them two runs, to see that it works.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from rich.console import Console
from rich.table import Table

from kdc.core.spec import DeviceFile
from targets.device import load_device
from targets.measure import Settings, measure

CHANNELS, SIZE = 32, 14


def network(path, extra=0):
    """Six convolutions on [1, 32, 14, 14]; the extra one has kernel 1 and `extra` filters more, dropped again."""
    generator = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"

    def conv(name, inputs, outputs, kernel):
        nonlocal last
        weight = generator.normal(0, 0.05, (outputs, inputs, kernel, kernel)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"{name}.weight"))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [last, f"{name}.weight"], [f"{name}.out"], pads=pads, name=name))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [name]))
        last = name

    for index in range(6):
        conv(f"conv{index}", CHANNELS, CHANNELS, 3)
        if index == 2 and extra:
            conv("extra.widen", CHANNELS, extra, 1)
            conv("extra.narrow", extra, CHANNELS, 1)
    shape = ["batch", CHANNELS, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        weights,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return DeviceFile(path, "onnxruntime")


def calibrated(folder, plain, device, cost):
    """The copy whose measured cost is nearest to `cost` times the plain network's, and that cost with its interval."""
    found = []
    copies = [network(folder / f"extra{width}.onnx", width) for width in (4, 8, 16, 24, 32, 48, 64, 80)]
    measured = measure(copies, plain, device, settings=Settings(seconds=60, precision=0.003))
    for index, copy in enumerate(copies):
        ratio = measured.ratio(index)
        found.append((abs(1 / ratio.ratio - cost), copy, ratio))
    _, copy, ratio = min(found, key=lambda one: one[0])
    return copy, ratio, measured


@contextmanager
def busy_loop(core):
    """Load a core with a loop that never waits, in a process of its own."""
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def trials(candidate, plain, device, settings, times):
    """Verdicts of as many comparisons, each with a seed of its own, and the row that tells them."""
    ratios, reached, start = [], Counter(), time.monotonic()
    for seed in range(times):
        one = measure([candidate], plain, device, settings=settings, seed=seed)
        ratios.append(one.ratio(0))
        reached[one.reached] += 1
    verdicts = Counter(one.verdict for one in ratios)
    widths = [100 * np.log(one.high / one.low) / 2 for one in ratios]
    return verdicts, (
        str(times),
        *(str(verdicts[verdict]) for verdict in ("faster", "slower", "no detectable difference")),
        f"{min(r.ratio for r in ratios):.3f}–{max(r.ratio for r in ratios):.3f}",
        f"{np.median(widths):.2f}",
        f"{(time.monotonic() - start) / times:.1f}",
        f"{reached['precision']}/{times}",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aa", type=int, default=40, help="A/A runs")
    parser.add_argument("--slower", type=int, default=40, help="runs of the slower copy")
    parser.add_argument("--busy", type=int, default=0, help="runs of each pair beside a busy loop")
    parser.add_argument("--times", type=int, help="runs of each kind, in place of the three numbers")
    parser.add_argument("--seconds", type=float, default=20.0, help="the most that one comparison takes")
    parser.add_argument("--cost", type=float, default=1.05, help="of the slower copy, times the file's")
    arguments = parser.parse_args()
    if arguments.times is not None:
        arguments.aa = arguments.slower = arguments.busy = arguments.times
    console, settings = Console(highlight=False, width=100), Settings(seconds=arguments.seconds)
    device = load_device("cpu-ort")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = network(folder / "plain.onnx")
        copy, ratio, calibration = calibrated(folder, plain, device, arguments.cost)
        low, middle, high = (100 / end - 100 for end in (ratio.high, ratio.ratio, ratio.low))
        console.print(f"plain: {calibration.baseline.latency.median_ms:.4f} ms; {'; '.join(calibration.notes)}")
        console.print(f"extra layer: {copy.path.stem}, costs {middle:.1f}% [{low:.1f}, {high:.1f}]")
        table = Table("pair", "times", "faster", "slower", "none", "ratios", "± %", "s each", "precise", "", box=None)

        def told(pair, candidate, times, held):
            if times:
                verdicts, row = trials(candidate, plain, device, settings, times)
                table.add_row(pair, *row, "holds" if held(verdicts) else "FAILS")

        told("A/A", plain, arguments.aa, lambda v: v["faster"] + v["slower"] <= 0.05 * v.total())
        told("+ layer", copy, arguments.slower, lambda v: v["slower"] >= 0.9 * v.total())
        with busy_loop(max(os.sched_getaffinity(0))):
            told("A/A, busy", plain, arguments.busy, lambda v: v["faster"] + v["slower"] == 0)
            told("+ layer, busy", copy, arguments.busy, lambda v: v["faster"] == 0)
        console.print(table)


if __name__ == "__main__":
    main()
