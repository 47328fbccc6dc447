"""Integers that are right on every processor of their target, and told where they are not."""

import json
import logging
from pathlib import Path

import numpy as np
import onnx_ir
from other_processors import ARM64, HASWELL, HERE, answers_on, lacks, python_on
from rows import ROOT, Claim, Outcome, Raw
from running_cases import copy_case, run_kdc, run_program

from kdc.core.budget import Budget
from kdc.core.contract import Context
from kdc.core.spec import DeviceFile
from kdc.distill.teacher import predict
from kdc.driver.evaluate import engines, run_over
from kdc.driver.inputs import load
from kdc.driver.recipe import load_recipe
from passes import PASSES
from passes.export.lower import lower
from passes.quantize import Quantize
from passes.simplify import Simplify
from targets.device import load_device
from targets.job import fields_of
from targets.runtime import runtime_of

TEACHERS = {"digits": 200, "fashion_mnist": 100}  # with as many samples: one takes up to half a second under emulation
FEWER = {"digits": 100, "fashion_mnist": 40}  # where it takes longer still
TOLERANCE = 0.5  # of what quantization itself changes, root mean squares: that of tests/targets/test_parity.py
POINTS = 0.2  # of accuracy that the eighth bit may be worth: within the standard error of 5,000 answers at 94%


def inputs_of(teacher: str):
    """A bundled teacher with its data."""
    logging.disable(logging.WARNING)
    return load(load_recipe(ROOT / f"models/{teacher}/recipe.yaml", {}, [], PASSES))


def quantized(inputs, target: str):
    """The teacher in the target's integers, by calibration alone."""
    device = load_device(target)
    context = Context(
        step="quantize", device=device, task=inputs.task, data=inputs.data, teacher=inputs.teacher.model,
        budget=Budget(), seed=0, work=None, cache=None, emit=lambda event: None, teacher_cost=None, forecasts=None,
    )  # fmt: skip
    return Quantize().apply(inputs.teacher, Quantize().decide(inputs.teacher, context))


def device_file(artifact, target: str, folder: Path) -> Path:
    """The file that the target loads."""
    folder.mkdir(parents=True)
    device, simplify = load_device(target), Simplify()
    model = artifact.with_model(lower(artifact, device.opset))
    onnx_ir.save(simplify.apply(model, simplify.decide(model, None)).model, folder / "model.onnx")
    return runtime_of(device).build(folder / "model.onnx", folder / "built", device).path


def on_another(target: str, processor: str, counts: dict[str, int] = TEACHERS):
    """Both teachers in a target's integers, the same file here and on another processor."""

    def measure(folder: Path) -> Raw:
        reason = lacks(processor)
        if reason is not None:
            raise RuntimeError(reason)
        found = {}
        for teacher, count in counts.items():
            inputs = inputs_of(teacher)
            split = inputs.data.test[:count]
            artifact = quantized(inputs, target)
            path = device_file(artifact, target, folder / teacher)
            samples = split.inputs[0].numpy()
            task = [(fields_of(load_device(target)), path)]
            (here,) = answers_on(HERE, task, samples, folder / teacher / "here")
            (there,) = answers_on(processor, task, samples, folder / teacher / "there")
            exact = predict(inputs.teacher.model, split).numpy()
            found[teacher] = {
                "samples": len(samples),
                "largest_difference": float(np.abs(there - here).max()),
                "changed_percent": 100 * float((there.argmax(1) != here.argmax(1)).mean()),
                "difference_rms": float(np.sqrt(np.mean((there - here) ** 2))),
                "quantization_rms": float(np.sqrt(np.mean((here - exact) ** 2))),
            }
        return found

    return measure


def told(raw: Raw) -> str:
    return "; ".join(
        f"{teacher}: largest difference {row['largest_difference']:.3g}, {row['changed_percent']:.1f}% of "
        f"{row['samples']} answers changed, {row['difference_rms'] / row['quantization_rms']:.3g} of what quantization "
        "changes"
        for teacher, row in raw.items()
    )


def shares(raw: Raw) -> list[float]:
    return [row["difference_rms"] / row["quantization_rms"] for row in raw.values()]


def same(raw: Raw) -> Outcome:
    return Outcome(
        max(shares(raw)) <= TOLERANCE, told(raw), f"at most {TOLERANCE:g} of what quantization changes, each"
    )


def differs(raw: Raw) -> Outcome:
    return Outcome(
        min(shares(raw)) > TOLERANCE, told(raw), f"more than {TOLERANCE:g} of what quantization changes, each"
    )


def accuracies(folder: Path) -> Raw:
    """Validation accuracy of the files, quantized by calibration alone, in per cent."""
    found: Raw = {}
    for teacher in TEACHERS:
        inputs = inputs_of(teacher)
        split = inputs.data.validation
        found[teacher] = {"samples": len(split)}
        for name, target in (("float", None), ("8 bits", "cpu-ort-vnni"), ("7 bits", "cpu-ort")):
            artifact = inputs.teacher if target is None else quantized(inputs, target)
            device = load_device(target or "cpu-ort")
            path = device_file(artifact, device.name, folder / teacher / name)
            answers, _ = run_over(engines(DeviceFile(path, device.runtime), device, len(split)), split, device.batch)
            found[teacher][name] = 100 * float(np.mean(inputs.task.scores(answers, split.labels.numpy())))
    return found


def costs_nothing(raw: Raw) -> Outcome:
    text = "; ".join(
        f"{teacher}, {row['samples']} samples: float {row['float']:.2f}, 8 bits {row['8 bits']:.2f}, 7 bits "
        f"{row['7 bits']:.2f}"
        for teacher, row in raw.items()
    )
    lost = max(row["8 bits"] - row["7 bits"] for row in raw.values())
    return Outcome(lost <= POINTS, text, f"7 bits at most {POINTS:g} points below 8, each")


def case(folder: Path) -> Raw:
    """The case's own commands."""
    place = copy_case("int8_without_vnni", folder)
    run = run_kdc(place, "compress", "recipe.yaml", "--out", "run")
    here = run_program(place, *python_on(HERE), "outputs.py", "here.npy")
    there = run_program(place, *python_on(HASWELL), "outputs.py", "avx2.npy", "here.npy")
    report = json.loads((place / "run/report.json").read_text())
    outputs = [np.load(place / name) for name in ("here.npy", "avx2.npy")]
    environment = report["environment"]
    return {
        "exit": [run.returncode, here.returncode, there.returncode],
        "largest_difference": float(np.abs(outputs[0] - outputs[1]).max()),
        "deviation": float(outputs[0].std()),
        "cpu": environment.get("cpu"),
        "processor_features": environment.get("processor_features"),
        "notes": [note for note in report["notes"] if "integers" in note],
    }


def case_holds(raw: Raw) -> Outcome:
    limit = 0.01 * raw["deviation"]
    holds = (
        raw["exit"] == [0, 0, 0]
        and raw["largest_difference"] <= limit
        and bool(raw["processor_features"])
        and any("no sum saturates" in note for note in raw["notes"])
    )
    features = ", ".join(raw["processor_features"] or [])
    return Outcome(
        holds,
        f"exit codes {raw['exit']}; largest difference {raw['largest_difference']:.3g} of logits with deviation "
        f"{raw['deviation']:.3g}; the report names {raw['cpu']} with {features}, and says: {'; '.join(raw['notes'])}",
        f"exit 0, at most {limit:.2g}, the processor's features and the file's integers told",
    )


HARM = "python benchmarks/proof/harm.py --only"
CLAIMS: list[Claim] = [
    Claim(
        "integers_case_without_vnni",
        "a student in integers answers alike on a processor with VNNI and on an emulated Haswell, and the report names "
        "the features that it was judged on",
        'kdc compress recipe.yaml --out run; python outputs.py here.npy; qemu-x86_64-static -cpu Haswell "$(command -v '
        'python)" outputs.py avx2.npy here.npy (in tests/cases/int8_without_vnni)',
        case,
        case_holds,
    ),
    Claim(
        "seven_bit_weights_on_haswell",
        "the bundled teachers in cpu-ort's integers answer alike here and on an emulated Haswell",
        f"{HARM} seven_bit_weights_on_haswell",
        on_another("cpu-ort", HASWELL),
        same,
    ),
    Claim(
        "seven_bit_weights_on_arm64",
        "the bundled teachers in cpu-ort's integers answer alike here and on an emulated arm64",
        f"KDC_ARM64_ROOT=$(.ci/arm64_root) {HARM} seven_bit_weights_on_arm64",
        on_another("cpu-ort", ARM64, FEWER),
        same,
        long=True,
    ),
    Claim(
        "seven_bit_weights_by_openvino_on_haswell",
        "the bundled teachers in cpu-openvino's integers answer alike here and on an emulated Haswell",
        f"{HARM} seven_bit_weights_by_openvino_on_haswell",
        on_another("cpu-openvino", HASWELL, FEWER),
        same,
        long=True,
    ),
    Claim(
        "eight_bit_weights_on_haswell",
        "the control: with weights of 8 bits (cpu-ort-vnni) the same teachers answer otherwise on an emulated Haswell",
        f"{HARM} eight_bit_weights_on_haswell",
        on_another("cpu-ort-vnni", HASWELL),
        differs,
    ),
    Claim(
        "seven_bit_weights_cost_no_accuracy",
        f"weights of 7 bits cost the bundled teachers at most {POINTS:g} points on validation, by calibration alone",
        f"{HARM} seven_bit_weights_cost_no_accuracy",
        accuracies,
        costs_nothing,
    ),
]
