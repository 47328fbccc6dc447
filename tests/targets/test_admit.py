"""A user's ONNX file reads nothing outside its folder and writes nothing outside `--out`, whatever verb it is given to."""

from types import SimpleNamespace

import onnx
import pytest
import torch
from hostile import (
    BROKEN,
    HOLDERS,
    LOCATIONS,
    NUMBERS,
    PLACES,
    broken,
    external,
    folder_with,
    hostile,
    initializer,
    saved,
)

from kdc import api
from kdc.cli.build import build
from kdc.cli.profile import profile
from kdc.cli.verify import verify
from kdc.core.data import Split
from kdc.core.errors import UserError
from kdc.distill.settings import Training
from kdc.distill.sources import files, source_digest
from kdc.distill.teacher_settings import OnnxSource
from kdc.driver.check import _run
from kdc.driver.compress import _admit_files
from kdc.driver.previous import answers_of_release
from passes.distill import Distill
from targets.device import load_device
from targets.door.admit import admit, files_of
from targets.noise import twin_of
from targets.parts import ready
from targets.runtime import _MODULES

REFUSED = {"sparse_constant", "attribute_of_another_type"}  # by onnx, wherever the weights lie
SAMPLES = Split((torch.zeros(2, 4),), torch.zeros(2, dtype=torch.int64))
RUN = SimpleNamespace(device=load_device("cpu-ort"), data=SimpleNamespace(test=SAMPLES))


def good(path):
    """A file without fault, beside the one in question."""
    folder = path.parent.parent / "good"
    folder.mkdir(exist_ok=True)
    return saved(folder, initializer(onnx.numpy_helper.from_array(NUMBERS, "w")))


VERBS = {
    "build": lambda path, out: build(path, out=out, target="cpu-ort"),
    "profile": lambda path, out: profile(path, seconds=0.1),
    "profile --against": lambda path, out: profile(good(path), against=path, seconds=0.1),
    "profile --self-test": lambda path, out: profile(path, self_test=True, seconds=0.1),
    "profile --nodes": lambda path, out: profile(path, nodes=True, seconds=0.1),
    "profile --shape": lambda path, out: profile(path, shape=["x=4"], seconds=0.1),
    "profile --sustained": lambda path, out: profile(path, sustained="1s"),
    "profile --stream": lambda path, out: profile(path, stream="10ms"),
    "profile --batches": lambda path, out: profile(path, batches="1"),
    "verify --bisect": lambda path, out: verify(path, bisect=True),
    "previous": lambda path, out: answers_of_release(path, 4, SAMPLES),
    "verify": lambda path, out: _run(path, RUN),
    "compress, previous": lambda path, out: _admit_files(SimpleNamespace(previous=path, passes=())),
    "compress, teachers": lambda path, out: _admit_files(
        SimpleNamespace(previous=None, passes=(Distill(training=Training(teachers=(OnnxSource(onnx=path),))),))
    ),
    "teachers": lambda path, out: files(OnnxSource(onnx=path)),
    "teachers, for the store's key": lambda path, out: source_digest(OnnxSource(onnx=path)),
    "the API's profile": lambda path, out: api.profile(path),
    "the API's second file": lambda path, out: api.profile(good(path), path),
}


def refused(verb, path, out):
    with pytest.raises(UserError) as caught:
        VERBS[verb](path, out)
    assert caught.value.exit_code == 2
    assert "→" in str(caught.value)
    assert "m.onnx" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", LOCATIONS)
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_takes_a_file_whose_weights_lie_elsewhere(tmp_path, verb, kind):
    path = hostile(tmp_path, kind)
    before = sorted(tmp_path.rglob("*"))
    refused(verb, path, tmp_path / "out")
    assert [one for one in sorted(tmp_path.rglob("*")) if one not in before and "good" not in one.parts] == []


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_takes_what_is_no_whole_model(tmp_path, verb, kind):
    refused(verb, broken(tmp_path, kind), tmp_path / "out")


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("location", ["../secret.bin", "linked/secret.bin"])
def test_every_place_that_a_weight_can_stand_in_is_looked_at(tmp_path, holder, location):
    path = saved(folder_with(tmp_path), HOLDERS[holder](external(location)))
    for look in (admit, files_of):
        with pytest.raises(UserError, match=r"outside the file's folder|symbolic link"):
            look(path)


@pytest.mark.parametrize("place", PLACES)
def test_a_weight_lies_within_its_file(tmp_path, place):
    path = saved(folder_with(tmp_path), initializer(external("weights.bin", **PLACES[place])))
    with pytest.raises(UserError):
        admit(path)


def test_a_location_that_is_told_twice_is_refused(tmp_path):
    weight = external("../secret.bin")
    weight.external_data.add(key="location", value="weights.bin")
    with pytest.raises(UserError, match="told twice"):
        admit(saved(folder_with(tmp_path), initializer(weight)))


@pytest.mark.parametrize("runtime", _MODULES)
def test_no_runtime_is_given_a_file_whose_weights_lie_elsewhere(tmp_path, runtime, monkeypatch):
    from importlib import import_module

    from targets.built import build_into

    one = import_module(_MODULES[runtime]).RUNTIME
    device = load_device("cpu-ort").model_copy(update={"runtime": runtime})
    monkeypatch.setattr(type(one), "build", lambda *_: pytest.fail("it was built"))
    with pytest.raises(UserError, match="outside the file's folder"):
        build_into(tmp_path / "out", hostile(tmp_path, "one folder up"), one, device)
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_under_another_name_is_none_the_less_one(tmp_path):
    path = hostile(tmp_path, "one folder up")
    other = path.rename(path.with_name("m.onnx.engine"))
    for verb in ("profile", "build", "the API's profile"):
        refused(verb, other, tmp_path / "out")


@pytest.mark.parametrize("holder", sorted(HOLDERS.keys() - REFUSED))
def test_weights_beside_the_file_are_its_own_wherever_they_stand(tmp_path, holder):
    path = saved(folder_with(tmp_path), HOLDERS[holder](external("sub/weights.bin")))
    assert files_of(path) == (path, path.parent / "sub" / "weights.bin")
    build(path, out=tmp_path / "out", target="cpu-ort")
    assert (tmp_path / "out" / "sub" / "weights.bin").read_bytes() == (path.parent / "sub" / "weights.bin").read_bytes()


def test_a_copy_to_be_compared_with_has_all_parts(tmp_path):
    path = saved(folder_with(tmp_path), HOLDERS["constant"](external("sub/weights.bin")))
    device = load_device("cpu-ort")
    with twin_of(ready(path, device), device) as twin:
        assert (twin.path.parent / "sub" / "weights.bin").exists()


def test_a_cascades_plan_names_files_of_its_own_folder(tmp_path):
    import hashlib
    import json

    path = hostile(tmp_path, "one folder up")
    plan = tmp_path / "plan" / "cascade.json"
    plan.parent.mkdir()
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in ("../model/m.onnx", str(path), "stage.onnx"):
        (plan.parent / "stage.onnx").unlink(missing_ok=True)
        (plan.parent / "stage.onnx").symlink_to(path)
        plan.write_text(json.dumps({"schema_version": 1, "stages": [{"file": name, "sha256": sha}]}))
        with pytest.raises(UserError, match="no file of its own folder"):
            admit(plan)
