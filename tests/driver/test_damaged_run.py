"""Whatever becomes of a run's private files, the next command makes anew what it must, and comes to the same student."""

import hashlib
import shutil
from pathlib import Path

import pytest
from damages import DAMAGES
from running_cases import copy_case
from shared_run import Target

from kdc import api
from kdc.core.observe import Epoch, Note
from kdc.core.store import Store
from kdc.core.weights import load_checkpoint
from kdc.core.writing import discard
from kdc.driver.inputs import load
from kdc.driver.plan import make
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Steps
from passes import PASSES

TRAINING = "{epochs: 2, batch: 300, checkpoint_seconds: 0.001}"
EPOCHS = f"passes=[{{prune: {{keep_macs: 0.5, importance: magnitude, training: {TRAINING}}}}}]"
QUICK = ("emptied", "a changed bit", "a pipe")
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGES]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_case("plain", tmp_path_factory.mktemp("damaged"))


def steps(project, store, emit=lambda event: None):
    """The digest of the student after the compressing steps of the recipe, none of which is timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        recipe, kept, target = load_recipe(project / "recipe.yaml", {}, [EPOCHS], PASSES), Store(store, emit), Target()
        inputs = load(recipe, kept)
        made = (run := Steps(inputs, kept, emit)).root
        (planned,) = make(recipe.passes, inputs.device).compress
        made = run.run(planned.label, planned, made, (1, 1), target.forecasts, target.teacher_cost)
        return made.artifact.digest()


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def finished(project, tmp_path_factory):
    """A finished store, and the digest of its student."""
    store = tmp_path_factory.mktemp("finished")
    return store, steps(project, store)


@pytest.fixture(scope="module")
def interrupted(project, tmp_path_factory):
    """A store whose step was stopped in the middle of its training."""
    store = tmp_path_factory.mktemp("interrupted")

    def stop(event):
        if isinstance(event, Epoch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps(project, store, stop)
    (work,) = (store / "work").iterdir()
    assert int(load_checkpoint(work / "training.safetensors")[1]["step"]) > 0
    return store


@pytest.mark.parametrize("damage", EACH)
def test_a_finished_step_that_was_damaged_is_made_anew(project, finished, tmp_path, damage):
    store = shutil.copytree(finished[0], tmp_path / "store")
    for path in files_in(store):
        DAMAGES[damage](path)
    notes = []
    assert steps(project, store, lambda event: notes.append(event) if isinstance(event, Note) else None) == finished[1]
    assert damage == "without permissions" or any("made anew" in note.text for note in notes)
    assert steps(project, store) == finished[1]


@pytest.mark.parametrize("damage", EACH)
def test_a_step_whose_work_was_damaged_is_begun_anew(project, finished, interrupted, tmp_path, damage):
    for name in ("decision.json", "training.safetensors"):
        store = shutil.copytree(interrupted, tmp_path / name)
        (work,) = (store / "work").iterdir()
        DAMAGES[damage](work / name)
        notes = []
        found = steps(project, store, lambda event, notes=notes: notes.append(getattr(event, "text", "")))
        assert found == finished[1]
        assert damage == "without permissions" or any("begun anew" in note for note in notes)


def test_an_interrupted_step_that_is_whole_goes_on(project, finished, interrupted, tmp_path):
    store = shutil.copytree(interrupted, tmp_path / "store")
    epochs = []
    found = steps(project, store, lambda event: epochs.append(event) if isinstance(event, Epoch) else None)
    assert (found, [event.epoch for event in epochs]) == (finished[1], [2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "stand"),
    [
        ("work", "file"),
        ("work/KEY", "file"),
        ("work/KEY", "link"),
        ("work/KEY", "dangling link"),
        ("cache/KEY", "file"),
    ],
)
def test_a_folder_of_the_store_that_is_none_is_made_anew(project, finished, interrupted, tmp_path, place, stand):
    store = shutil.copytree(interrupted, tmp_path / "store")
    (tmp_path / "mine").mkdir()
    path = store / place
    if path.name == "KEY":
        path = next(path.parent.iterdir())
    discard(path)
    match stand:
        case "file":
            path.write_text("")
        case "link":
            path.symlink_to(tmp_path / "mine")
        case _:
            path.symlink_to(tmp_path / "nothing")
    if place == "work":  # as `kdc.driver.folder` does at the beginning of a run
        discard(path)
    assert steps(project, store) == finished[1]
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.slow
def test_a_run_whose_private_folder_is_damaged_everywhere_ends_with_the_same_bytes(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    out = tmp_path / "run"
    again = {"passes": [{"prune": {"keep_macs": 0.5, "training": {"epochs": 2, "batch": 100}}}]}

    def student():
        api.compress(project / "recipe.yaml", out, overrides=again)
        return [
            hashlib.sha256((out / name).read_bytes()).hexdigest() for name in ("weights.safetensors", "student.onnx")
        ]

    first = student()
    for index, path in enumerate(files_in(out / ".kdc")):
        list(DAMAGES.values())[index % len(DAMAGES)](path)
    shutil.rmtree(out / ".kdc" / "store" / "work", ignore_errors=True)
    (out / ".kdc" / "store" / "work").write_text("")
    assert student() == first
