"""Recipes without training data: read, refused, and run; the samples are made once and told of in the report."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_toys import GOOD, load, refused, told

from kdc.core.errors import DataError, ModelError
from kdc.core.observe import Progress
from kdc.core.store import Store
from kdc.distill.synthesis.settings import GeneratorSettings, InversionSettings
from kdc.driver import inputs
from kdc.driver.check import check
from kdc.driver.compress import compress
from kdc.driver.plan import make
from kdc.driver.preview import preview
from kdc.driver.recipe import Recipe, load_recipe, lock_text
from kdc.driver.why import why
from passes import PASSES
from targets.device import load_device

TEACHER = "teacher:\n  build: my.py:build\n  inputs: [{name: image, shape: [batch, 1, 8, 8]}]\n"
INVERTED = "data: {synthesise: {method: inversion, samples: 512}}\n"

# what is read and refused


def test_a_recipe_may_synthesise_in_place_of_data(folder: Path):
    recipe = load(folder, TEACHER + INVERTED)
    assert recipe.data.load is None
    assert recipe.data.synthesise == InversionSettings(samples=512)
    both = load(folder, GOOD.replace("data: my.py:load", "data: {load: my.py:load, synthesise: {method: generator}}"))
    assert both.data.synthesise == GeneratorSettings()
    assert both.data.load is not None


def test_the_lock_of_such_a_recipe_loads_again_to_an_equal_one(folder: Path):
    recipe = load(folder, TEACHER + "data: {synthesise: {method: generator, limits: [0, 1]}}\n")
    (folder / "lock.yaml").write_text(lock_text(recipe))
    assert load_recipe(folder / "lock.yaml", {}, [], {}) == recipe


def test_data_without_load_and_synthesise_are_refused_with_both_ways_out(folder: Path):
    message = refused(folder, TEACHER + "data: {arguments: {n: 3}}\n")
    told(message, "recipe.yaml:4: the key 'data.load' is missing", "add `load:` to data", "synthesise: {method")


def test_without_any_data_the_teachers_inputs_must_be_told(folder: Path):
    message = refused(folder, "teacher: {build: my.py:build}\n" + INVERTED)
    told(message, "recipe.yaml:1: the key 'teacher.inputs' is missing", "no data to see the inputs' shapes from")
    told(message, "shape: [batch, 1, 28, 28]")


def test_arguments_of_no_callable_are_refused(folder: Path):
    message = refused(folder, TEACHER + "data:\n  arguments: {n: 3}\n  synthesise: {method: inversion}\n")
    told(message, "recipe.yaml:5: data.arguments are of no callable", "take data.arguments out")


def test_the_recipes_of_the_documents_page_are_read(folder: Path):
    for name in ("teacher.py", "data.py", "teacher.safetensors"):
        (folder / name).touch()
    page = (Path(__file__).parents[2] / "docs" / "data-free.md").read_text()
    texts = [part.partition("```")[0] for part in page.split("```yaml\n")[1:]]
    found = [load(folder, text if "teacher:" in text else TEACHER + text) for text in texts]
    assert [(one.data.load is None, one.data.synthesise is None) for one in found] == [(True, False), (False, False)]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("{method: dream}", "expected the key 'method' in it as one of 'inversion', 'generator'"),
        ("{samples: 512}", "expected the key 'method' in it"),
        ("{method: inversion, samples: 3}", "data.synthesise.samples is 3"),
        ("{method: inversion, latent: 10}", "expected one of batch, batch_norm, first_batch_norm, flip, jitter"),
        ("{method: generator, limits: [1, 0]}", "data.synthesise: limits are [1.0, 0.0]"),
        ("{method: inversion, steps: true}", "data.synthesise.steps is true"),
        ("{method: inversion, limits: [0, .inf]}", "data.synthesise.limits.1 is inf"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_line(folder: Path, settings: str, found: str):
    told(refused(folder, f"{TEACHER}data:\n  synthesise: {settings}\n"), "recipe.yaml:5", found)


# what is loaded


RUN = """
teacher:
  build: teacher.py:build
  weights: teacher.safetensors
  inputs: [{name: image, shape: [batch, 1, 8, 8]}]
data: %s
budget: {max_drop: 100}
passes:
  - prune: {keep_macs: 0.3, alignment: 4, training: {epochs: 2, batch: 32}}
"""
SHORT = "synthesise: {method: inversion, samples: 512, batch: 180, steps: 6}"
REAL = """
import numpy as np
from data import load as everything


def load(*names):
    return {name: split for name, split in everything().items() if name in ("validation", "test")}


def all_of_them():
    return everything()


def nothing():
    return {}


def wide():
    images, labels = everything()["test"]
    return {"test": (np.concatenate([images, images[:, :, :1]], 2), labels)}


def collected():
    return {**load(), "unlabeled": everything(seed=5)["train"][0]}
"""


def recipe(folder: Path, data: str = f"{{{SHORT}}}", teacher: str = "") -> Recipe:
    (folder / "real.py").write_text(REAL)
    (folder / "free.yaml").write_text(RUN % data)
    made = load_recipe(folder / "free.yaml", {}, [], PASSES)
    if teacher == "unseen":
        made = made.model_copy(update={"teacher": made.teacher.model_copy(update={"inputs": None})})
    return made


def test_samples_stand_for_all_splits_and_bear_the_teachers_answers(shapes: Path):
    found = inputs.load(recipe(shapes))
    splits = [getattr(found.data, name) for name in ("train", "calibration", "validation", "test")]
    assert sum(map(len, splits)) == 512
    for split in splits:
        assert torch.equal(found.teacher.model(split.inputs[0]).argmax(1), split.labels)
        assert torch.bincount(split.labels, minlength=4).min() > 0
    assert any("synthesised from the teacher by inversion" in note for note in found.data.notes)
    assert found.data.notes[1] == (
        "accuracy is agreement with the teacher on synthetic samples; no real data was given"
    )


def test_real_splits_are_kept_and_only_what_is_missing_is_synthetic(shapes: Path):
    found = inputs.load(recipe(shapes, f"{{load: real.py:load, {SHORT}}}", "unseen"))
    names: dict = {}
    exec((shapes / "data.py").read_text(), names)
    images, labels = names["load"]()["test"]
    assert np.array_equal(found.data.test.inputs[0].numpy(), images)
    assert np.array_equal(found.data.test.labels.numpy(), labels)
    assert len(found.data.train) + len(found.data.calibration) == 512
    assert not any("accuracy" in note for note in found.data.notes)
    assert found.teacher.inputs[0].shape == ("batch", 1, 8, 8)


def test_collected_samples_come_in_beside_synthetic_ones(shapes: Path):
    found = inputs.load(recipe(shapes, f"{{load: real.py:collected, {SHORT}}}"))
    assert found.data.unlabeled is not None
    assert len(found.data.unlabeled) == 360


def test_a_training_split_beside_synthesise_is_refused(shapes: Path):
    with pytest.raises(DataError, match=r"returned a training split, and .*synthesise.*\n  → take `synthesise` out"):
        inputs.read(recipe(shapes, f"{{load: real.py:all_of_them, {SHORT}}}"))


def test_data_that_show_no_shapes_ask_for_the_teachers_inputs(shapes: Path):
    with pytest.raises(ModelError, match=r"returned no samples\n  → write teacher\.inputs"):
        inputs.read(recipe(shapes, f"{{load: real.py:nothing, {SHORT}}}", "unseen"))


def test_real_samples_that_are_unlike_the_teachers_inputs_are_refused_before_the_synthesis(shapes: Path):
    made = recipe(shapes, f"{{load: real.py:wide, {SHORT}}}")
    with pytest.raises(
        DataError, match=r"test holds float32\[n, 1, 9, 8\], labels\[n\]; train holds float32\[n, 1, 8, 8\]"
    ):
        inputs.read(made)


def test_tokens_are_refused_before_anything_is_begun(shapes: Path):
    (shapes / "teacher.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))\n"
    )
    text = (RUN % f"{{{SHORT}}}").replace("[batch, 1, 8, 8]", "[batch, 3], dtype: int64").replace("weights", "#")
    (shapes / "tokens.yaml").write_text(text)
    with pytest.raises(ModelError, match="'image' is int64; samples are synthesised by gradients"):
        compress(load_recipe(shapes / "tokens.yaml", {}, [], PASSES), shapes / "run")
    assert not (shapes / "run").exists()


def synthesis(events: list) -> list[Progress]:
    return [event for event in events if isinstance(event, Progress) and event.what == "inverting the teacher"]


def test_samples_are_made_once_for_a_teacher_settings_and_a_seed(shapes: Path):
    store = Store(shapes / "store")

    def fingerprint(made: Recipe) -> tuple[str, int]:
        events: list = []
        return inputs.load(made, store, events.append).data.fingerprint, len(synthesis(events))

    first, told_of = fingerprint(recipe(shapes))
    assert told_of > 0
    assert fingerprint(recipe(shapes)) == (first, 0)
    longer = fingerprint(recipe(shapes, f"{{{SHORT.replace('6}', '7}')}}}"))
    seeded = fingerprint(recipe(shapes).model_copy(update={"seed": 3}))
    assert len({first, longer[0], seeded[0]}) == 3
    assert longer[1] > 0
    assert seeded[1] > 0
    weights = shapes / "teacher.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    assert fingerprint(recipe(shapes))[1] > 0


def test_a_plan_takes_no_time_for_the_synthesis_and_tells_of_it(shapes: Path, monkeypatch: pytest.MonkeyPatch):
    steps: list[int] = []
    real = inputs.synthetic

    def watched(teacher, source, settings, *rest):
        steps.append(settings.steps)
        return real(teacher, source, settings, *rest)

    monkeypatch.setattr(inputs, "synthetic", watched)
    device = load_device("cpu-ort")
    found = preview(recipe(shapes), make(recipe(shapes).passes, device), device)
    assert steps == [1]
    assert found.notes == ("`kdc compress` synthesises 512 training samples from the teacher",)


@pytest.mark.slow
def test_a_run_without_data_ends_with_a_student_and_says_what_its_accuracy_is_of(shapes: Path):
    out, events = shapes / "run", []
    made = recipe(shapes, f"{{{SHORT.replace('6}', '30}')}}}")
    report = compress(made, out, events.append)
    assert synthesis(events)
    assert report.teacher.metric.points == 100
    assert report.student.metric.points == pytest.approx(report.student.metrics["agreement"])
    assert any("no real data was given" in note for note in report.notes)
    check(out)
    assert all(reason.stored for reason in why(made, out, None))
    again: list = []
    assert compress(made, out, again.append).student.sha256 == report.student.sha256
    assert not synthesis(again)
