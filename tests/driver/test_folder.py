"""An output folder belongs to one run, is used by one process, and is never spoiled."""

import os

import pytest

from kdc.core.errors import FolderError
from kdc.driver.folder import check, damaged, opened, publish

WHO = {"teacher": "a.py:build", "data": "d.py:load"}


def test_a_folder_that_is_a_file_is_refused_and_left(tmp_path):
    file = tmp_path / "out"
    file.write_text("mine")
    with pytest.raises(FolderError, match="is a file"):
        check(file, WHO)
    assert file.read_text() == "mine"


def test_a_folder_with_other_things_is_refused_and_left(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FolderError, match="not a run of kdc"), opened(tmp_path, WHO):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_runs_folder_is_refused_by_name(tmp_path):
    with opened(tmp_path, WHO):
        pass
    with pytest.raises(FolderError, match="holds another run: teacher a.py:build; this one has teacher b.py:build"):
        check(tmp_path, {**WHO, "teacher": "b.py:build"})


def test_the_same_run_comes_back_to_its_folder(tmp_path):
    for _ in range(2):
        with opened(tmp_path, WHO) as private:
            assert private.is_dir()


def test_the_second_of_two_runs_is_told_so(tmp_path):
    with opened(tmp_path, WHO), pytest.raises(FolderError, match=f"in use by another kdc .process {os.getpid()}"):
        with opened(tmp_path, WHO):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FolderError, match="no permission"):
        check(tmp_path / "out", WHO)


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot be written"), opened(tmp_path / "file" / "out", WHO):
        pass


def test_a_full_disk_says_so_and_keeps_what_was_there(tmp_path):
    with opened(tmp_path, WHO):
        publish(tmp_path, {"student.onnx": "first"})
    with pytest.raises(FolderError, match="is full"), opened(tmp_path, WHO):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "student.onnx").read_text() == "first"
    assert damaged(tmp_path) == []


def test_the_manifest_finds_a_changed_and_a_missing_file(tmp_path):
    publish(tmp_path, {"a": "1", "b": "2"})
    (tmp_path / "a").write_text("3")
    (tmp_path / "b").unlink()
    assert damaged(tmp_path) == ["a is not the file that was written", "b is missing"]
