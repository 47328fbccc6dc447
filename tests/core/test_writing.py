"""What kdc writes is whole or not there, and no link leads it elsewhere."""

import contextlib
import os

import pytest
import torch

from kdc.core.errors import DamagedError, FolderError
from kdc.core.placing import check_place, journal_of, place
from kdc.core.weights import load_checkpoint, save_checkpoint, save_weights
from kdc.core.writing import discard, make_folder, partial_name, read_checked, write_bytes, write_checked, write_text

WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "bytes": lambda path: write_bytes(path, b"new"),
    "checked": lambda path: write_checked(path, {"a": 1}),
    "weights": lambda path: save_weights({"w": torch.ones(2)}, path),
    "checkpoint": lambda path: save_checkpoint({"w": torch.ones(2)}, path),
    "placed": lambda path: place(path.parent, {path.name: "new"}, path.parent / "journal", {}, force=True),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path, writer):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "file"
    for target in (mine, tmp_path / "nothing", tmp_path / "out"):
        discard(path)
        path.symlink_to(target)
        WRITERS[writer](path)
        assert not path.is_symlink()
        assert path.stat().st_size > 0
    assert mine.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_left_beside_what_was_written(tmp_path, writer):
    WRITERS[writer](tmp_path / "file")
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "journal"}
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    found = os.umask(0)
    os.umask(found)
    return found


def test_names_of_half_written_files_cannot_be_foreseen(tmp_path):
    assert len({partial_name(tmp_path / "file") for _ in range(100)}) == 100


def test_a_half_written_file_that_somebody_laid_down_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    planted = tmp_path / "planted"
    planted.symlink_to(tmp_path / "mine")
    monkeypatch.setattr("kdc.core.writing.partial_name", lambda path: planted)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_is_removed_is_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("mine")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for link in (tmp_path / "link", tmp_path / "folder" / "link", tmp_path / "folder" / "inner" / "link"):
        link.symlink_to(tmp_path / "mine")
    (tmp_path / "folder" / "inner").chmod(0)
    discard(tmp_path / "link")
    discard(tmp_path / "folder")
    discard(tmp_path / "not there")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis").read_text() == "mine"


def test_a_folder_is_made_where_something_else_stands(tmp_path):
    (tmp_path / "mine").mkdir()
    for name, stand in (
        ("file", lambda path: path.write_text("")),
        ("link", lambda path: path.symlink_to(tmp_path / "mine")),
        ("dangling", lambda path: path.symlink_to(tmp_path / "nothing")),
        ("pipe", os.mkfifo),
    ):
        stand(tmp_path / name)
        make_folder(tmp_path / name)
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).is_dir()


def test_checked_values_come_back_and_changed_ones_do_not(tmp_path):
    path = tmp_path / "values.json"
    content = {"b": [1, 2.5, None], "a": {"x": True, "1": "é"}}
    write_checked(path, content)
    assert read_checked(path) == content
    whole = path.read_bytes()
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with contextlib.suppress(DamagedError):
            assert read_checked(path) == content  # the change is of white space
        path.write_bytes(whole[:index])
        with pytest.raises(DamagedError):
            read_checked(path)


def test_a_checkpoint_comes_back_and_a_changed_one_does_not(tmp_path):
    path = tmp_path / "c.safetensors"
    state = {"w": torch.randn(3, 2), "h": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    save_checkpoint(state, path, {"step": "7", "more": "x"})
    found, told = load_checkpoint(path)
    assert told == {"step": "7", "more": "x"}
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    whole = path.read_bytes()
    for index in range(8, len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with contextlib.suppress(DamagedError):
            again, words = load_checkpoint(path)
            assert words == told  # white space in the header
            assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert load_checkpoint(tmp_path / "none") is None


def test_a_users_file_is_not_overwritten_and_kdcs_own_is(tmp_path):
    journal = tmp_path / ".kdc" / "written.json"
    for text in ("first", "second"):
        place(tmp_path, {"a": text, "sub/b": text}, journal, journal_of(journal) or {})
        assert (tmp_path / "sub" / "b").read_text() == text
    (tmp_path / "a").write_text("edited")
    with pytest.raises(FolderError, match="a is not what kdc wrote.*\n.*--force"):
        place(tmp_path, {"sub/b": "third", "a": "third"}, journal, journal_of(journal))
    assert (tmp_path / "sub" / "b").read_text() == "second"
    assert (tmp_path / "a").read_text() == "edited"
    place(tmp_path, {"a": "third"}, journal, journal_of(journal), force=True)
    assert (tmp_path / "a").read_text() == "third"


def test_a_users_file_that_is_the_same_stays_the_users(tmp_path):
    journal = tmp_path / "journal"
    (tmp_path / "a").write_text("same")
    place(tmp_path, {"a": "same"}, journal, {})
    with pytest.raises(FolderError):
        place(tmp_path, {"a": "other"}, journal, journal_of(journal))


def test_a_run_that_was_killed_while_it_wrote_finds_its_own_files_again(tmp_path, monkeypatch):
    journal = tmp_path / "journal"
    place(tmp_path, {"a": "1", "b": "1"}, journal, {})
    real = write_text

    def killed(path, text):
        if path.name == "b":
            raise KeyboardInterrupt
        real(path, text)

    monkeypatch.setattr("kdc.core.placing.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        place(tmp_path, {"a": "2", "b": "2"}, journal, journal_of(journal))
    monkeypatch.undo()
    place(tmp_path, {"a": "3", "b": "3"}, journal, journal_of(journal))
    assert [(tmp_path / name).read_text() for name in "ab"] == ["3", "3"]


def test_a_folder_inside_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "mine")
    with pytest.raises(FolderError, match="symbolic link"):
        place(tmp_path / "out", {"sub/a": "1"}, tmp_path / "out" / "journal", {}, force=True)
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_file_that_the_user_named_is_looked_at_before_the_work(tmp_path):
    def ours(path):
        return path.read_text() == "kdc's"

    path = tmp_path / "page.html"
    check_place(path, "--html", ours)
    path.write_text("")
    check_place(path, "--html", ours)
    path.write_text("kdc's")
    check_place(path, "--html", ours)
    path.write_text("mine")
    check_place(path, "--html", ours, force=True)
    with pytest.raises(FolderError, match="kdc did not write it"):
        check_place(path, "--html", ours)
    with pytest.raises(FolderError, match="is a folder"):
        check_place(tmp_path, "--html", ours, force=True)
    for name, target in (("link", path), ("dangling", tmp_path / "nothing")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(FolderError, match="symbolic link"):
            check_place(tmp_path / name, "--html", ours, force=True)
    os.mkfifo(tmp_path / "pipe")
    check_place(tmp_path / "pipe", "--log", ours)
