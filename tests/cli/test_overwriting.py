"""What the user named is written where it was named, and nothing of the user's is overwritten but by --force."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdc.cli.build import build
from kdc.cli.profile import profile
from kdc.cli.show import observer
from kdc.cli.targets import targets
from kdc.core.errors import FolderError
from kdc.core.observe import Note
from kdc.driver.folder import check, opened, publish

WHO = {"teacher": "a.py:build", "data": "d.py:load"}


def saved(path: Path, scale: float = 1.0) -> Path:
    """y = x @ w."""
    weight = numpy_helper.from_array(np.full((4, 2), scale, np.float32), "w")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 4), ("y", 2))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_a_build_overwrites_its_own_files_and_none_of_the_users(tmp_path):
    out = tmp_path / "out"
    build(saved(tmp_path / "m.onnx", 1), out=out)
    build(saved(tmp_path / "m.onnx", 2), out=out)
    assert (out / "m.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    (out / "m.onnx").write_text("mine")
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(FolderError, match=r"m\.onnx is not what kdc wrote"):
        build(tmp_path / "m.onnx", out=out)
    assert (out / "m.onnx").read_text() == "mine"
    build(tmp_path / "m.onnx", out=out, force=True)
    assert (out / "m.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert (out / "thesis.tex").read_text() == "mine"


def test_a_build_where_the_model_lies_leaves_it_the_users(tmp_path):
    before = saved(tmp_path / "m.onnx", 1).read_bytes()
    build(tmp_path / "m.onnx", out=tmp_path)
    assert (tmp_path / "m.onnx").read_bytes() == before
    (tmp_path / "other").mkdir()
    with pytest.raises(FolderError, match="not what kdc wrote"):
        build(saved(tmp_path / "other" / "m.onnx", 2), out=tmp_path)


@pytest.mark.parametrize("stand", ["a link", "a dangling link", "a file"])
def test_a_build_goes_into_a_folder_and_through_no_link(tmp_path, stand):
    model, out, mine = saved(tmp_path / "m.onnx"), tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    if stand == "a file":
        out.write_text("mine")
    else:
        out.symlink_to(mine if stand == "a link" else tmp_path / "nothing")
    with pytest.raises(FolderError, match="is a file" if stand == "a file" else "symbolic link"):
        build(model, out=out, force=True)
    assert list(mine.iterdir()) == []
    assert not (tmp_path / "nothing").exists()


def test_a_link_in_the_folder_of_a_build_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out" / "m.onnx").symlink_to(tmp_path / "mine")
    with pytest.raises(FolderError, match="not what kdc wrote"):
        build(saved(tmp_path / "m.onnx"), out=tmp_path / "out")
    build(tmp_path / "m.onnx", out=tmp_path / "out", force=True)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "out" / "m.onnx").is_symlink()


def test_links_above_the_folder_are_the_users_own_layout(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    build(saved(tmp_path / "m.onnx"), out=tmp_path / "runs" / "new" / "out")
    assert (tmp_path / "disk" / "new" / "out" / "m.onnx").exists()


def test_a_page_is_overwritten_where_kdc_wrote_it_and_before_anything_is_timed(tmp_path, monkeypatch):
    page, model = tmp_path / "page.html", saved(tmp_path / "m.onnx")
    monkeypatch.setattr("targets.measure.compare", lambda *_, **__: pytest.fail("it was timed"))
    page.write_text("<html>mine</html>")
    for other in ({}, {"stream": "10ms"}, {"self_test": True}):
        with pytest.raises(FolderError, match="kdc did not write it"):
            profile(model, html=page, **other)
    (tmp_path / "link.html").symlink_to(page)
    with pytest.raises(FolderError, match="symbolic link"):
        profile(model, html=tmp_path / "link.html", force=True)
    assert page.read_text() == "<html>mine</html>"


def test_a_page_of_kdcs_says_so(tmp_path):
    from kdc.cli.looks import put_page
    from targets.page.page import document, is_page

    put_page(tmp_path / "page.html", document("a", "b", "c", []))
    assert is_page(tmp_path / "page.html")


def test_a_log_is_added_to_and_another_file_is_not(tmp_path):
    log = tmp_path / "log.jsonl"
    for text in ("one", "two"):
        with observer(quiet=True, log=log) as emit:
            emit(Note(text))
    assert [json.loads(line)["text"] for line in log.read_text().splitlines()] == ["one", "two"]
    for content in ("mine\n", '{"a": 1}\n', "[1]\n", "\xff\xfe"):
        (tmp_path / "notes.txt").write_text(content, encoding="latin-1")
        with pytest.raises(FolderError, match="kdc did not write it"), observer(quiet=True, log=tmp_path / "notes.txt"):
            pass
    with observer(quiet=True, log=tmp_path / "notes.txt", force=True) as emit:
        emit(Note("three"))
    assert "three" in (tmp_path / "notes.txt").read_text(encoding="latin-1")
    for name, target in (("link", log), ("dangling", tmp_path / "nothing")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(FolderError, match="symbolic link"), observer(quiet=True, log=tmp_path / name, force=True):
            pass
    assert not (tmp_path / "nothing").exists()


def test_a_calibration_overwrites_none_but_a_calibration(tmp_path, monkeypatch):
    monkeypatch.setattr("targets.predictor.calibrate.calibrate", lambda *_, **__: pytest.fail("it was measured"))
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    with pytest.raises(FolderError, match="kdc did not write it"):
        targets(["calibrate", "cpu-ort"], out=tmp_path / "mine.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "mine.json")
    with pytest.raises(FolderError, match="symbolic link"):
        targets(["calibrate", "cpu-ort"], out=tmp_path / "link.json", force=True)


@pytest.mark.parametrize("place", ["", ".kdc", ".kdc/store", ".kdc/store/cache", ".kdc/store/work"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_runs_folder_that_is_a_link_is_refused_and_nothing_is_written_behind_it(tmp_path, place, dangling):
    out, mine = tmp_path / "out", tmp_path / "mine"
    if not dangling:
        mine.mkdir()
    path = out / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(mine)
    with pytest.raises(FolderError, match="symbolic link"), opened(out, WHO):
        pass
    assert not mine.exists() or list(mine.iterdir()) == []


def test_a_lock_that_is_a_link_is_replaced(tmp_path):
    (tmp_path / "mine").write_text("mine")
    out = tmp_path / "out"
    with opened(out, WHO):
        pass
    for stand in (lambda at: at.symlink_to(tmp_path / "mine"), lambda at: at.symlink_to(tmp_path / "no"), Path.mkdir):
        (out / ".kdc" / "lock").unlink() if not (out / ".kdc" / "lock").is_dir() else (out / ".kdc" / "lock").rmdir()
        stand(out / ".kdc" / "lock")
        with opened(out, WHO):
            pass
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "no").exists()


def test_a_result_in_a_runs_folder_that_is_the_users_stays(tmp_path):
    with opened(tmp_path, WHO):
        publish(tmp_path, {"report.json": "1", "student.onnx": "1"})
    check(tmp_path, WHO, ("student.onnx",))
    (tmp_path / "student.onnx").write_text("mine")
    with pytest.raises(FolderError, match=r"student\.onnx is not what kdc wrote"):
        check(tmp_path, WHO, ("report.json",))  # what was written once counts too
    with pytest.raises(FolderError, match="--force"):
        publish(tmp_path, {"report.json": "2", "student.onnx": "2"})
    assert (tmp_path / "report.json").read_text() == "1"
    (tmp_path / "student.xml").write_text("mine")
    with pytest.raises(FolderError, match=r"student\.xml"):
        publish(tmp_path, {"report.json": "2", "student.xml": "2"})
    publish(tmp_path, {"report.json": "2", "student.onnx": "2"}, force=True)
    assert (tmp_path / "student.onnx").read_text() == "2"


@pytest.mark.parametrize("name", ["run.json", "clock.json", "written.json", "lock"])
@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"sha256": 1}'])
def test_a_run_goes_on_in_a_folder_whose_own_files_are_damaged(tmp_path, name, damage):
    from kdc.driver.clock import Clock

    with opened(tmp_path, WHO) as private:
        (private / "store").mkdir()
        publish(tmp_path, {"report.json": "1"})
    (tmp_path / ".kdc" / name).write_text(damage)
    check(tmp_path, WHO, ("report.json",))
    with opened(tmp_path, WHO) as private:
        clock = Clock(private / "clock.json", "r", None)
        clock.write()
        publish(tmp_path, {"report.json": "2"})
    check(tmp_path, WHO, ("report.json",))
    with pytest.raises(FolderError, match="another run"):
        check(tmp_path, {**WHO, "teacher": "b.py:build"})


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    from kdc.core.writing import partial_name

    with opened(tmp_path, WHO) as private:
        (private / "store").mkdir()
    left = [partial_name(tmp_path / "student.onnx"), partial_name(private / "store" / "prune-1")]
    left[0].write_text("half")
    left[1].mkdir()
    (tmp_path / ".mine.part").write_text("mine")
    with opened(tmp_path, WHO):
        pass
    assert [path.exists() for path in left] == [False, False]
    assert (tmp_path / ".mine.part").exists()
