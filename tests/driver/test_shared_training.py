"""Steps of a recipe whose trainings are shared by two processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from shared_run import Target, run
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.errors import LawError, ModelError, TargetError
from kdc.core.store import Store
from kdc.driver.again import Failure, Figures, GoOn, Recorded, Replayed

ROOT = Path(__file__).parents[2]
TRAINED = "{epochs: 1, batch: 32, processes: 2}"
PASSES = {
    "assistants": f"[{{distill: {{assistants: {{keep_macs: [0.5], training: {{epochs: 1}}}}, training: {TRAINED}}}}}]",
    "quantize": f"[{{quantize: {{qat: always, training: {TRAINED}}}}}]",
    "route": f"[{{route: {{training: {TRAINED}}}}}]",
    "search": "[{search: {spaces: [{family: plain, depth: [1, 3], channels: [4, 8]}], population: 4, generations: 1, "
    f"finalists: 2, epochs: 1, training: {TRAINED}}}}}]",
}
TWO_TRAININGS = (
    "passes=[{prune: {keep_macs: 0.5, alignment: 4, training: {epochs: 0}}}, {distill: {stages: [{epochs: 1, batch: 32}], "
    "training: {epochs: 20, batch: 32, checkpoint_seconds: 1e-6, PROCESSES}}}]"
)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1).double() for tensor in model.state_dict().values()])


def others(folder: Path) -> list[int]:
    """Processes that share a training whose files lie in the folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue
        if "kdc.driver.member" in said and str(folder) in said:
            found.append(int(place.name))
    return found


def until(what, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_there(folder: Path, sign: str) -> bool:
    """Whether a file is there whose folders may be renamed while one looks."""
    try:
        return any(folder.glob(sign))
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_the_second_training_of_a_step_is_shared_and_goes_on_after_kills_that_leave_no_process(shapes, tmp_path):
    text = (shapes / "recipe.yaml").read_text().split("passes:")[0] + TWO_TRAININGS.replace("=", ": ", 1)
    for name, processes in (("shared", "processes: 2"), ("alone", "accumulate: 2")):
        (shapes / f"{name}.yaml").write_text(text.replace("PROCESSES", processes))
    alone = run(shapes / "alone.yaml", tmp_path / "alone").artifact
    whole = run(shapes / "shared.yaml", tmp_path / "whole").artifact
    start = run(shapes / "alone.yaml", tmp_path / "alone", "passes.1.training.epochs=1").artifact
    # Of BatchNorm's statistics the first process's count, which saw half of each batch.
    one, two, begun = (torch.cat([p.reshape(-1) for p in made.model.parameters()]) for made in (alone, whole, start))
    assert 0 < (one - two).norm() < 0.05 * (one - begun).norm()

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    store = tmp_path / "killed"
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).parent / "shared_run.py"),
        str(shapes / "shared.yaml"),
        str(store),
    ]
    for sign in ("scratch/kdc-*/members-*/1/job.json", "killed/work/*/training.safetensors"):
        with subprocess.Popen(command, env=environment) as process:
            try:
                until(lambda sign=sign, process=process: is_there(tmp_path, sign) or process.poll() is not None)
                if sign.startswith("scratch"):
                    until(lambda: others(scratch))
            finally:
                process.send_signal(signal.SIGKILL)
        until(lambda: not others(scratch))
    assert Store(store).entries("distill") == []
    again = run(shapes / "shared.yaml", store).artifact
    assert torch.equal(weights(again.model), weights(whole.model))


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSES)
def test_another_process_comes_to_the_trainings_of_each_pass(shapes, tmp_path, name, monkeypatch):
    joined: list[str] = []

    def recorded(self, training, folder):
        joined.append(training)
        return command(self, training, folder)

    command = GoOn.__call__
    monkeypatch.setattr(GoOn, "__call__", recorded)
    made = run(shapes / "recipe.yaml", tmp_path / "store", f"passes={PASSES[name]}", "budget.min_speedup=1.5")
    assert len(made.artifact.lineage) == 1
    expected = {"assistants": ["distill"], "quantize": ["quantize.qat"], "route": ["route.exits"]}
    if name == "search":
        first, second, third = joined
        assert first.startswith("search.")
        assert second.startswith("search.")
        assert (first != second, third) == (True, "search")
    else:
        assert joined == expected[name]


def test_another_process_is_told_the_figures_of_the_first_in_their_order():
    def artifact(width: int) -> Artifact[nn.Module]:
        layer = nn.Linear(width, 2)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return Artifact(layer, (), ())

    target = Target()
    fails = TargetError("no such operator", do="leave it out")

    def ask(artifacts):
        found = target.forecasts(artifacts)
        return [fails if one.model.in_features == 5 else cost for one, cost in zip(artifacts, found, strict=True)]

    recorded = Recorded(ask, target.teacher_cost)
    first = [*recorded.forecasts([artifact(3), artifact(5)]), *recorded.forecasts([artifact(3), artifact(4)])]
    assert first[0] != first[2]
    teacher = recorded.teacher_cost()
    replayed = Replayed(Figures.model_validate_json(recorded.figures.model_dump_json()))
    # What lay in the work folder is not asked again: the rest must not shift.
    assert replayed.forecasts([artifact(4)]) == [first[3]]
    third, (fifth,) = replayed.forecasts([artifact(3)]), replayed.forecasts([artifact(5)])
    assert third == [first[0]]
    assert replayed.forecasts([artifact(3)]) == [first[2]]
    assert type(fifth) is TargetError
    assert str(fifth) == str(fails)
    assert replayed.teacher_cost() == teacher
    with pytest.raises(LawError, match="asks for a forecast that the first process was not told"):
        replayed.forecasts([artifact(3)])
    with pytest.raises(LawError, match="asks for what the teacher costs"):
        Replayed(Figures()).teacher_cost()
    assert isinstance(Failure.of(ModelError("x")).error(), ModelError)
