"""The store gives back what was put in, whole or not at all."""

from pathlib import Path

import pytest

from kdc.core.store import Store, key_of

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
