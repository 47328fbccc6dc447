"""Nothing stored is served where what it depends on has changed, nothing is done again where it has not; and why."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from running_cases import copy_case, run_kdc

from kdc.core.contract import Contract, Decision, Fact, Pass
from kdc.core.errors import LawError
from kdc.core.observe import silent
from kdc.core.spec import DeviceFile
from kdc.core.store import Store, key_of
from kdc.driver import lowering
from kdc.driver.inputs import load
from kdc.driver.keys import root_parts, step_parts
from kdc.driver.lowering import Lowering
from kdc.driver.plan import Planned, make
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Steps
from kdc.driver.why import why
from passes import PASSES

MEASURED = {
    "latency_ms": (1.0, 2.0),
    "latency_ms@cold": (1.0, 2.0),
    "min_speedup": (2.0, 3.0),
    "size_mb": (0.5, 0.25),
    "macs": (60000.0, 30000.0),
    "peak_memory_mb": (8.0, 4.0),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def read(shapes: Path):
    """Inputs of the recipe with these settings; nothing is run."""

    def make(*settings: str, budget: str = "{max_drop: null}", passes: str = "[prune: {}]"):
        every = [f"budget={budget}", f"passes={passes}", *settings]
        return load_recipe(shapes / "recipe.yaml", {}, every, PASSES)

    return make


def keys(recipe):
    """{step: the parts of its own key} of the compressing steps."""
    inputs = load(recipe)
    return {
        planned.label: step_parts(planned.settings, "0", inputs, planned.after)
        for planned in make(recipe.passes, inputs.device).compress
    }


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("kind", ["prune", "search"])
def test_a_limit_that_a_pass_reads_is_in_its_key_and_in_no_other(read, kind, name):
    was, now = (
        keys(read(budget=f"{{max_drop: null, macs: 1000, '{name}': {limit}}}", passes=f"[{kind}: {{}}]"))[kind]
        for limit in MEASURED[name]
    )
    assert was["budget"][name] != now["budget"][name]
    assert {k: v for k, v in was.items() if k != "budget"} == {k: v for k, v in now.items() if k != "budget"}
    fixed = (
        "prune: {keep_macs: 0.5}" if kind == "prune" else "search: {student: {family: plain, layers: [{channels: 8}]}}"
    )
    was, now = (
        keys(read(budget=f"{{max_drop: null, '{name}': {limit}}}", passes=f"[{fixed}]"))[kind]
        for limit in MEASURED[name]
    )
    assert was == now


@pytest.mark.parametrize(("qat", "redone"), [("auto", True), ("always", False), ("never", False)])
def test_another_max_drop_redoes_only_a_quantize_that_decides_by_it(read, qat, redone):
    passes = f"[{{prune: {{keep_macs: 0.5}}}}, {{quantize: {{drop_share: 0.4, qat: {qat}}}}}]"
    was, now = (keys(read(budget=f"{{max_drop: {points}}}", passes=passes)) for points in (1, 2))
    assert was["prune"] == now["prune"]
    assert (was["quantize"] != now["quantize"]) == redone


@pytest.mark.parametrize(
    ("later", "redone"),
    [
        ("", True),
        ("{quantize: {percentile: 99.5}}", True),
        ("{quantize: {training: {epochs: 9}, drop_share: 2, qat: always}}", False),
        ("{distill: {}}, {quantize: {}}", True),
        ("{quantize: {}}, {export: {opset: 19}}", True),
        ("{quantize: {}}, {route: {}}", False),  # it measures, and is left out of the forecasts of others
    ],
)
def test_a_measured_prune_is_redone_where_the_structure_of_a_later_pass_changes(read, later, redone):
    for settings, expected in (("{}", redone), ("{keep_macs: 0.5}", False)):
        was, now = (
            keys(read(budget="{max_drop: null, macs: 60000}", passes=f"[{{prune: {settings}}}, {rest}]"))["prune"]
            for rest in ("{quantize: {}}", later)
        )
        assert (was != now) == expected
        assert {**was, "forecasts": 0} == {**now, "forecasts": 0}


@pytest.mark.parametrize("name", ["latency_ms@cold", "peak_memory_mb"])
def test_a_forecast_that_measures_more_is_another_one(read, name):
    """`route` reads no limit, but gets costs that hold cold times and memory only where these are limited."""
    budgets = "{max_drop: null}", f"{{max_drop: null, '{name}': 8}}", f"{{max_drop: null, '{name}': 9}}"
    without, one, other = (keys(read(budget=budget, passes="[{route: {}}]"))["route"] for budget in budgets)
    assert without != one
    assert one == other


@pytest.mark.parametrize("settings", ["max_drop: 2", "mean_latency_ms: 1", "training: {processes: 2}"])
def test_a_step_is_redone_under_other_settings(read, settings):
    was, now = (keys(read(passes=f"[{{route: {{{one}}}}}]"))["route"] for one in ("", settings))
    assert {name for name in was if was[name] != now[name]} == {"settings"}


OTHER = {
    "the device": lambda i: replace(i, device=i.device.model_copy(update={"threads": 7})),
    "the task": lambda i: replace(i, task=type("Other", (type(i.task),), {"name": "other"})()),
    "the data": lambda i: replace(i, data=replace(i.data, fingerprint="other")),
    "the seed": lambda i: replace(i, recipe=i.recipe.model_copy(update={"seed": 5})),
    "the teacher's code": lambda i: replace(i, teacher_source="other"),
    "the names of its inputs": lambda i: replace(
        i, teacher=replace(i.teacher, inputs=tuple(s.model_copy(update={"name": "x"}) for s in i.teacher.inputs))
    ),
    "what its code is told": lambda i: replace(
        i,
        recipe=i.recipe.model_copy(
            update={"teacher": i.recipe.teacher.model_copy(update={"arguments": {"activation": "gelu"}})}
        ),
    ),
}


@pytest.mark.parametrize("what", OTHER)
def test_what_every_pass_may_read_is_in_every_key(read, what):
    inputs = load(read())
    for kind in PASSES:
        settings = PASSES[kind]()
        parts = [step_parts(settings, "0", one) for one in (inputs, OTHER[what](inputs))]
        assert key_of(parts[0]) != key_of(parts[1]), kind


def test_why_names_the_field_and_the_later_pass_that_changed(read, tmp_path):
    def stored(budget, passes, out):
        store = Store(out / ".kdc" / "store")
        for name, parts in keys(read(budget=budget, passes=passes)).items():
            store.write(name, {**parts, "previous": key_of(root_parts(load(read())))}, {}, {})

    def told(budget, passes, out):
        (reason,) = why(read(budget=budget, passes=passes), out, "prune")
        return reason.changes

    was, passes = "{max_drop: null, macs: 60000}", "[{prune: {}}, {quantize: {}}]"
    stored(was, passes, tmp_path / "run")
    assert told(was, passes, tmp_path / "run") == ()
    assert told("{max_drop: null, macs: 30000}", passes, tmp_path / "run") == ("budget.macs: 60000 → 30000",)
    assert told("{max_drop: 3, macs: 60000.5}", passes, tmp_path / "run") == ("budget.macs: 60000 → 60000.5",)
    (changed,) = told(was, "[{prune: {}}, {quantize: {percentile: 99.5}}]", tmp_path / "run")
    assert changed == "forecasts.after.quantize.settings.percentile: 99.99 → 99.5"
    order, gone = told(was, "[{prune: {}}]", tmp_path / "run")
    assert order.startswith("forecasts.after.order: ")
    assert gone == "forecasts.after.quantize: present → absent"
    (changed,) = told(was, "[{prune: {training: {processes: 2}}}, {quantize: {}}]", tmp_path / "run")
    assert changed == "settings.training.processes: 1 → 2"


class Nothing(Decision):
    """Nothing is decided."""


class Toy(Pass[Nothing]):
    """Reads what it does not declare, in one verb or the other."""

    kind: ClassVar[str] = "toy"
    decision_type: ClassVar[type[Decision]] = Nothing

    reads_in: str = ""
    quietly: bool = False

    def contract(self, device):
        return Contract(requires=frozenset({Fact.TORCH}))

    def decide(self, artifact, context):
        self._read("decide", context)
        return Nothing()

    def apply(self, artifact, decision):
        return artifact.with_model(torch.nn.Sequential(artifact.model))

    def tune(self, artifact, context):
        self._read("tune", context)
        return artifact

    def _read(self, verb, context):
        if verb == self.reads_in:
            try:
                _ = context.budget.macs
            except LawError:
                if not self.quietly:
                    raise


@pytest.mark.parametrize("quietly", [False, True])
@pytest.mark.parametrize("verb", ["decide", "tune", ""])
def test_a_read_that_is_not_declared_fails_the_step_and_nothing_is_stored(read, tmp_path, verb, quietly):
    store = Store(tmp_path / "store")
    steps = Steps(load(read()), store, silent)
    planned = Planned("toy", Toy(reads_in=verb, quietly=quietly), frozenset({Fact.TORCH}))
    if not verb:
        steps.run("toy", planned, steps.root, (1, 1), lambda artifacts: [], lambda: None)
        assert len(store.entries("toy")) == 1
        return
    with pytest.raises(LawError, match=r"toy: Toy reads budget\.macs, which its reads\(\) does not name"):
        steps.run("toy", planned, steps.root, (1, 1), lambda artifacts: [], lambda: None)
    assert store.entries("toy") == []


def test_a_later_pass_that_reads_what_it_does_not_declare_fails_the_forecast(read, tmp_path):
    inputs = load(read())
    steps = Steps(inputs, Store(tmp_path / "store"), silent)
    lowerer = Lowering(steps, make(inputs.recipe.passes, inputs.device))
    toy = Planned("toy", Toy(reads_in="decide"), frozenset({Fact.TORCH}))
    with pytest.raises(LawError, match=r"Toy reads budget\.macs"):
        lowerer.forecasts((toy,))([steps.root.artifact])


def test_a_latency_is_measured_anew_for_other_inputs(read, tmp_path, monkeypatch):
    timed: list[int] = []

    def quick(files, device, samples):
        timed.append(len(samples[0]))
        return [1.0 for _ in files]

    monkeypatch.setattr(lowering, "quick_latencies", quick)
    monkeypatch.setattr(lowering, "sha256_of_parts", lambda file, runtime: "of the same file")
    file = DeviceFile(tmp_path / "model.onnx", "onnxruntime")
    inputs = load(read())
    other = replace(inputs, data=replace(inputs.data, fingerprint="other"))
    for one, count in ((inputs, 8), (inputs, 8), (other, 8), (inputs, 4), (other, 8)):
        steps = Steps(one, Store(tmp_path / "store"), silent)
        lowerer = Lowering(steps, make(one.recipe.passes, one.device))
        lowerer._latency_ms("floor", file, lowerer.samples(count))
    assert timed == [8, 8, 4]


def test_another_previous_release_redoes_no_step(read, shapes):
    (shapes / "old.onnx").write_bytes(b"")
    (shapes / "older.onnx").write_bytes(b"")
    passes = "[{prune: {}}, {quantize: {}}, {route: {}}]"
    old, older = (
        keys(read(f"previous={shapes / name}", budget="{macs: 60000}", passes=passes))
        for name in ("old.onnx", "older.onnx")
    )
    assert old == older


@pytest.mark.slow
def test_a_prune_is_not_reused_under_another_budget(tmp_path):
    """The case: 60000 multiply-accumulates, then 30000 in the same folder; the same as in a new one."""
    case = copy_case("stale_budget", tmp_path)
    run_kdc(case, "compress", "recipe.yaml", "--out", "run")
    told = run_kdc(case, "why", "recipe.yaml", "--max-macs", "30000", "--out", "run", "--step", "prune").stdout
    assert "prune: would be done again\n  budget.macs: 60000 → 30000\n" in told
    limited = ("compress", "recipe.yaml", "--max-macs", "30000", "--out")
    again, fresh = run_kdc(case, *limited, "run"), run_kdc(case, *limited, "fresh")
    assert "] prune: stored" not in again.stderr + again.stdout
    for done, out in ((again, "run"), (fresh, "fresh")):
        assert done.returncode in (0, 3), done.stderr  # whether the student is faster is for the clock to say
        report = json.loads((case / out / "report.json").read_text())
        assert [verdict["met"] for verdict in report["budget"] if verdict["name"] == "macs"] == [True]
    assert (case / "run" / "weights.safetensors").read_bytes() == (case / "fresh" / "weights.safetensors").read_bytes()
