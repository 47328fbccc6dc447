"""The store gives back what was put in, whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdc.core.store import Store, key_of
from kdc.core.writing import discard

PARTS = {"previous": "a", "settings": {"ratio": 0.5}}


def written(root: Path, text: str = "weights") -> Store:
    store = Store(root)
    store.write("prune", PARTS, {"seconds": 1}, {"weights": lambda path: path.write_text(text)})
    return store


def test_an_entry_is_found_under_the_key_of_its_parts(tmp_path):
    entry = written(tmp_path).find("prune", key_of(PARTS))
    assert entry is not None
    assert entry.file("weights").read_text() == "weights"
    assert entry.parts == PARTS


@pytest.mark.parametrize(
    "other", [{**PARTS, "previous": "b"}, {**PARTS, "settings": {"ratio": 0.6}}, {**PARTS, "seed": 1}]
)
def test_another_part_is_another_key(tmp_path, other):
    assert written(tmp_path).find("prune", key_of(other)) is None


def test_the_order_of_the_parts_does_not_matter():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})


def test_an_entry_whose_file_was_changed_is_not_served(tmp_path):
    store = written(tmp_path)
    store.find("prune", key_of(PARTS)).file("weights").write_text("other")
    assert store.find("prune", key_of(PARTS)) is None


def test_a_write_that_fails_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.write("prune", PARTS, {}, {"weights": full})
    assert store.find("prune", key_of(PARTS)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_recorded_and_never_served(tmp_path):
    store = Store(tmp_path)
    store.fail("prune", PARTS, ValueError("no"))
    assert store.find("prune", key_of(PARTS)) is None
    assert "no" in next((tmp_path / "failures").iterdir()).read_text()


def test_finishing_a_step_clears_its_checkpoints(tmp_path):
    store = Store(tmp_path)
    work = store.work(key_of(PARTS))
    work.mkdir(parents=True)
    written(tmp_path)
    assert not work.exists()


def swap(path: Path, stand: Callable[[Path], object]) -> None:
    """Something else in a path's place."""
    discard(path)
    stand(path)


SHAPES: dict[str, Callable[[Path], object]] = {
    "missing": discard,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "a changed byte": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "a changed number": lambda path: path.write_bytes(path.read_bytes().replace(b"1", b"2").replace(b"w", b"v")),
    "not JSON": lambda path: path.write_bytes(b"\xff\xfe{"),
    "another type": lambda path: path.write_text("[1, 2]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": lambda path: swap(path, Path.mkdir),
    "a dangling link": lambda path: swap(path, lambda at: at.symlink_to(at.parent / "nothing")),
    "a pipe": lambda path: swap(path, os.mkfifo),
    "without permissions": lambda path: path.chmod(0),
}
FOLDERS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: swap(path, Path.mkdir),
    "a file": lambda path: swap(path, Path.touch),
    "a dangling link": lambda path: swap(path, lambda at: at.symlink_to(at.parent / "nothing")),
    "a pipe": lambda path: swap(path, os.mkfifo),
    "without permissions": lambda path: path.chmod(0),
}


def is_made_anew(root: Path, notes: list[str]) -> None:
    store = Store(root, lambda event: notes.append(event.text))  # type: ignore[attr-defined]
    served = store.find("prune", key_of(PARTS))
    if served is not None:  # root reads what has no permissions
        assert served.file("weights").read_text() == "weights"
        assert served.record["seconds"] == 1
        return
    assert len(notes) == 1 or not notes
    entry = store.write("prune", PARTS, {"seconds": 1}, {"weights": lambda path: path.write_text("weights")})
    assert store.find("prune", key_of(PARTS)) == entry
    assert [path.name for path in root.iterdir()] == [entry.folder.name]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["entry.json", "weights"])
def test_an_entry_with_a_damaged_file_is_told_of_and_made_anew(tmp_path, name, shape):
    written(tmp_path)
    (folder,) = tmp_path.iterdir()
    SHAPES[shape](folder / name)
    notes: list[str] = []
    is_made_anew(tmp_path, notes)
    if shape != "without permissions":
        assert "is damaged" in notes[0]
        assert "made anew" in notes[0]
        assert folder.name in notes[0]


@pytest.mark.parametrize("shape", FOLDERS)
def test_an_entry_that_is_no_folder_any_more_is_made_anew(tmp_path, shape):
    written(tmp_path)
    (folder,) = tmp_path.iterdir()
    FOLDERS[shape](folder)
    is_made_anew(tmp_path, [])


def test_an_entry_in_another_ones_place_is_not_served(tmp_path):
    store = written(tmp_path)
    other = store.write("prune", {"other": 1}, {}, {"weights": lambda path: path.write_text("others")})
    (tmp_path / f"prune-{key_of(PARTS)[:20]}").rename(tmp_path / "aside")
    other.folder.rename(tmp_path / f"prune-{key_of(PARTS)[:20]}")
    assert store.find("prune", key_of(PARTS)) is None


def test_a_removed_entry_takes_nothing_with_it_that_it_leads_to(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "weights").write_text("mine")
    written(tmp_path / "store")
    (folder,) = (tmp_path / "store").iterdir()
    swap(folder, lambda at: at.symlink_to(mine))
    is_made_anew(tmp_path / "store", [])
    assert (mine / "weights").read_text() == "mine"


@pytest.mark.parametrize("shape", FOLDERS)
def test_a_damaged_place_for_failures_does_not_hide_the_failure(tmp_path, shape):
    store = Store(tmp_path)
    store.fail("prune", PARTS, ValueError("no"))
    FOLDERS[shape](tmp_path / "failures")
    store.fail("prune", PARTS, ValueError("again"))
    if shape != "without permissions":
        assert "again" in next((tmp_path / "failures").iterdir()).read_text()
