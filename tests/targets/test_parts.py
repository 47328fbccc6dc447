"""Files of several parts: hashed, moved and renamed together, whatever the runtime."""

from pathlib import Path

import pytest

from kdc.core.errors import TargetError
from kdc.core.spec import DeviceFile
from targets.parts import described_by, move, remove, renamed, sha256_of_parts


class Two:
    """A runtime whose files have their weights beside them, by their own stem, and a table that they name inside."""

    suffix = ".xml"

    def files(self, file):
        return (file.path, file.path.with_suffix(".bin"), file.path.with_name("table.csv"))


class Onnx(Two):
    suffix = ".onnx"


@pytest.fixture
def file(tmp_path):
    for name, text in (("m.xml", "graph"), ("m.bin", "weights"), ("table.csv", "0"), ("source.onnx", "onnx")):
        (tmp_path / name).write_text(text)
    return DeviceFile(tmp_path / "m.xml", "two", tmp_path / "source.onnx")


def test_files_of_one_graph_with_other_weights_are_other_files(file):
    before = sha256_of_parts(file, Two())
    file.path.with_suffix(".bin").write_text("trained on")
    assert sha256_of_parts(file, Two()) != before


def test_parts_that_carry_the_files_name_get_the_new_one_and_others_keep_theirs(file):
    found = renamed(file, Two(), "student")
    assert list(found) == ["student.xml", "student.bin", "table.csv"]
    assert [path.name for path in found.values()] == ["m.xml", "m.bin", "table.csv"]


def test_a_moved_file_takes_its_parts_and_its_graph_with_it(file, tmp_path):
    moved = move(file, Two(), tmp_path / "new" / "place")
    assert moved == DeviceFile(tmp_path / "new/place/m.xml", "two", tmp_path / "new/place/source.onnx")
    assert sorted(path.name for path in moved.path.parent.iterdir()) == ["m.bin", "m.xml", "source.onnx", "table.csv"]
    remove(moved, Two())
    assert list(moved.path.parent.iterdir()) == []


def test_a_graph_that_is_the_file_itself_is_moved_once(file, tmp_path):
    same = DeviceFile(file.path, "two", file.path)
    assert move(same, Two(), tmp_path / "new").graph == tmp_path / "new" / "m.xml"


def test_what_a_file_was_built_from_tells_of_its_graph_and_a_foreign_format_alone_tells_nothing(file):
    assert described_by(file, Two()) == (Path(file.graph),)
    assert described_by(DeviceFile(file.path, "two"), Two()) == ()
    assert described_by(DeviceFile(file.path, "two"), Onnx()) == Two().files(file)


def test_a_missing_part_is_named(tmp_path):
    from targets.openvino import OpenVino

    (tmp_path / "m.xml").write_text("graph")
    with pytest.raises(TargetError, match=r"m\.bin: there is no such file"):
        OpenVino().files(DeviceFile(tmp_path / "m.xml", "openvino"))
