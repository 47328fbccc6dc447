"""How well latencies are estimated that nobody measured: whole models of four families, none seen by the calibration.

    python tests/bench/predictor.py              # calibrate, export the models, score: about ten minutes
    python tests/bench/predictor.py calibrate    # or one step of these three at a time
    python tests/bench/predictor.py export
    python tests/bench/predictor.py score

The calibration learns from graphs of its own (`targets/predictor/samples.py`). These models are written in torch, by other
code, and exported as a user would; `--set develop` draws others, to look at while a method is worked on. A set judges
blindly once: `held-out` has, and a method that is changed after that needs a set of another name.

Each model is timed in several fresh processes, in random interleaved blocks with the calibration's reference network, as the
calibration's own graphs are: what is held against an estimate is the median of its multiples of the reference, at the time
that the reference took then. So a clock that changed since is no error of the estimate's; `as timed` is the same without
that, on this day's clock.
"""

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx

from kdc.core.devicefile import DeviceFile
from targets.device import load_device
from targets.predictor import clock
from targets.predictor.calibrate import calibrate, check
from targets.predictor.calibration import load, save
from targets.predictor.fit import Measured
from targets.predictor.kernels import read_kernels
from targets.predictor.predict import estimate
from targets.predictor.samples import reference

DEVICE = load_device("cpu-ort")
AT_ONCE = 6  # models in a process
GOALS = "goals: median at most 8%, 90% within 20%, Kendall's tau at least 0.9"


def show(name, checked):
    print(
        f"{name:10}  {checked.networks:3} models  median {checked.median_error:6.1%}  90% within {checked.p90_error:6.1%}"
        f"  tau {checked.kendall_tau:.3f}"
    )


def step_calibrate(arguments):
    found = calibrate(DEVICE)
    save(found, arguments.calibration)
    print(
        f"calibrated in {found.seconds:.0f} s: {found.graphs} graphs, {arguments.calibration}", *found.notes, sep="\n"
    )
    print(found.peaks, f"drift {found.run_noise:.1%} from process to process, noise of a ratio {found.ratio_noise:.1%}")
    print("its own check, on whole networks that it built itself:")
    for name, checked in found.checks.items():
        show(name, checked)


def step_export(arguments):
    from predictor_models import zoo

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    files = zoo(arguments.models / arguments.set, arguments.set, arguments.count)
    print(f"{sum(map(len, files.values()))} models in {arguments.models / arguments.set}")


def measured(paths, processes):
    """Multiples of the reference, and ms as timed: [processes][models] each."""
    multiples, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder) / "reference.onnx"
        onnx.save(reference(), beside)
        for _ in range(processes):
            multiples.append([])
            times.append([])
            for first in range(0, len(paths), AT_ONCE):
                files = [*[beside] * clock.COPIES, *paths[first : first + AT_ONCE]]
                rounds = clock.timed([DeviceFile(path, "onnxruntime") for path in files], DEVICE)
                multiples[-1] += clock.multiples(rounds)
                times[-1] += [float(np.median(row)) for row in rounds[clock.COPIES :]]
    return np.array(multiples), np.array(times)


def step_score(arguments):
    calibration = load(DEVICE, arguments.calibration)
    paths = sorted((arguments.models / arguments.set).glob("*.onnx"))
    multiples, times = measured(paths, arguments.processes)
    families, as_timed, rows = {}, [], []
    for path, multiple, timed_ms in zip(paths, np.median(multiples, axis=0), np.median(times, axis=0), strict=True):
        kernels, ms = read_kernels(path, DEVICE), multiple * calibration.reference_ms
        found = estimate(kernels, calibration)
        families.setdefault(path.stem.split("-")[0], []).append(Measured(kernels, ms * 1e6))
        as_timed.append(Measured(kernels, timed_ms * 1e6))
        rows.append(
            {"model": path.stem, "measured_ms": ms, "timed_ms": timed_ms, "estimated_ms": found.ms}
            | {"covered": found.covered}
        )
        print(
            f"{path.stem:45}  measured {ms:8.3f} ms  estimated {found.ms:8.3f}  {found.ms / ms - 1:+6.1%}"
            f"  covered {found.covered:4.0%}  {', '.join(found.unknown)}"
        )
    print()
    for family, networks in families.items():
        show(family, check(calibration.table, networks))
    show("all", check(calibration.table, [network for networks in families.values() for network in networks]))
    show("as timed", check(calibration.table, as_timed))
    ratios, plain = (np.median(each.max(0) / each.min(0) - 1) for each in (multiples, times))
    print(f"{GOALS}; a model's slowest process is over its fastest by {ratios:.1%} in the median, {plain:.1%} as timed")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", default="all", choices=["all", "calibrate", "export", "score"])
    folder = Path(tempfile.gettempdir()) / "kdc-predictor-bench"
    parser.add_argument("--calibration", type=Path, default=folder / "cpu-ort.json")
    parser.add_argument("--models", type=Path, default=folder)
    parser.add_argument(
        "--set", default="held-out", help="any name: the models of a name are drawn by it, always the same"
    )
    parser.add_argument("--count", type=int, default=11, help="models of each family")
    parser.add_argument("--processes", type=int, default=6, help="that each model is measured in")
    parser.add_argument("--out", type=Path, help="write each model's times here, as JSON")
    arguments = parser.parse_args()
    for step in (step_calibrate, step_export, step_score):
        if arguments.step in {"all", step.__name__.removeprefix("step_")}:
            step(arguments)


if __name__ == "__main__":
    main()
