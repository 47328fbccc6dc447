"""The cache is bounded, evicts what was used least recently and never what is in use; and changes no answer."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.data import Split
from kdc.core.errors import FolderError
from kdc.core.observe import Event, Note, Progress
from kdc.distill.answer_settings import AnswerForm
from kdc.distill.answers import Header, Source
from kdc.distill.cache import Cache, claim
from kdc.distill.predict_only import Apart, asked_only
from kdc.distill.several import Several
from kdc.distill.teacher import predict
from kdc.distill.teacher_answers import BLOCK, TeacherAnswers
from kdc.distill.views import View


def source(number: int) -> Source:
    return Source(teacher="t", data="d", seed=0, view=str(number), form=AnswerForm(kind="exact"))


def header(number: int) -> Header:
    return Header(source=source(number), samples=100, shape=(5,), block=50)


SIZE = header(0).size


def kept(cache: Cache, number: int, hour: int) -> Path:
    file = cache.make(cache.root / source(number).name(), header(number))
    assert file is not None
    os.utime(file.path, (3600 * hour, 3600 * hour))
    return file.path


def test_the_least_recently_used_file_is_evicted_first(tmp_path):
    earlier = Cache(tmp_path, 10 * SIZE)
    paths = [kept(earlier, number, hour) for number, hour in ((0, 2), (1, 1), (2, 3))]
    earlier.close()
    later = Cache(tmp_path, 3 * SIZE)
    assert kept(later, 3, 4).exists()
    assert [path.exists() for path in paths] == [True, False, True]
    later.close()


def test_reading_a_file_is_using_it(tmp_path):
    cache = Cache(tmp_path, 10 * SIZE)
    paths = [kept(cache, number, hour) for number, hour in ((0, 1), (1, 2))]
    cache.close()
    again = Cache(tmp_path, 10 * SIZE)
    assert again.find(paths[0], source(0)) is not None
    again.close()
    small = Cache(tmp_path, 2 * SIZE)
    kept(small, 2, 3)
    small.close()
    assert [path.exists() for path in paths] == [True, False]


def test_a_file_in_use_is_never_evicted(tmp_path):
    holder = Cache(tmp_path, 10 * SIZE)
    path = kept(holder, 0, 1)
    other = Cache(tmp_path, SIZE)
    assert other.make(tmp_path / source(1).name(), header(1)) is None
    assert path.exists()
    holder.close()
    assert other.make(tmp_path / source(1).name(), header(1)) is not None
    assert not path.exists()
    other.close()


def test_nothing_is_evicted_where_all_would_not_be_enough(tmp_path):
    holder = Cache(tmp_path, 10 * SIZE)
    path = kept(holder, 0, 1)
    holder.close()
    other = Cache(tmp_path, 10 * SIZE)
    kept(other, 1, 2)
    tight = Cache(tmp_path, 2 * SIZE - 1)
    assert tight.make(tmp_path / source(2).name(), header(2)) is None
    assert path.exists()
    other.close()
    assert tight.make(tmp_path / source(2).name(), header(2)) is not None
    assert not path.exists()
    tight.close()


def test_a_lower_limit_takes_effect_when_a_file_is_read(tmp_path):
    cache = Cache(tmp_path, 10 * SIZE)
    paths = [kept(cache, number, number + 1) for number in range(3)]
    cache.close()
    lower = Cache(tmp_path, SIZE)
    assert lower.find(paths[1], source(1)) is not None
    assert [path.exists() for path in paths] == [False, True, False]
    lower.close()


def test_what_a_killed_process_left_half_made_is_removed(tmp_path):
    cache = Cache(tmp_path, 10 * SIZE)
    left = tmp_path / f".{source(0).name()}.123.456.part"
    left.write_bytes(b"half")
    kept(cache, 1, 1)
    cache.close()
    assert not left.exists()


def test_the_limit_of_nobodys_choice_is_a_share_of_the_disk(tmp_path):
    limit = Cache(tmp_path / "not" / "there").limit
    disk = os.statvfs(tmp_path)
    assert 0 < limit <= min(50e9, disk.f_bavail * disk.f_frsize / 4 * 1.1)


def test_a_shared_folder_is_one_teachers_on_one_data_set(tmp_path):
    for _ in range(2):
        claim(tmp_path / "shared", "teacher-a", "data-a")
    with pytest.raises(FolderError, match="another teacher: found teacher-a, expected teacher-b") as raised:
        claim(tmp_path / "shared", "teacher-b", "data-a")
    assert "→ name another folder" in str(raised.value)
    with pytest.raises(FolderError, match="other data or another augmentation: found data-a, expected data-b"):
        claim(tmp_path / "shared", "teacher-a", "data-b")
    (tmp_path / "shared" / "teacher.json").write_text("{")
    with pytest.raises(FolderError, match="damaged"):
        claim(tmp_path / "shared", "teacher-a", "data-a")


def seen(key: str, seed: int, n: int = 2 * BLOCK + 30) -> View:
    images = torch.randn((n, 1, 6, 6), generator=torch.Generator().manual_seed(seed))
    return View(Split((images,), torch.arange(n) % 3), key)


def replaced(context: Context, **changes: object) -> Context:
    return dataclasses.replace(context, **changes)


class Counting(nn.Module):
    """Passes every batch on to a teacher, and counts the samples; may be killed at one of its batches."""

    def __init__(self, teacher: nn.Module, killed_at: int | None = None) -> None:
        super().__init__()
        self.inner, self.killed_at, self.batches, self.samples = teacher, killed_at, 0, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches += 1
        if self.batches == self.killed_at:
            raise KeyboardInterrupt
        self.samples += len(x)
        return self.inner(x)


def counting(context: Context, **changes: object) -> tuple[Context, Counting]:
    teacher = Counting(context.teacher, **changes).eval()
    return replaced(context, teacher=teacher), teacher


EVERY = torch.arange(2 * BLOCK + 30)


def test_the_answers_are_the_teachers_own_to_the_bit_and_asked_for_once(small_context):
    context, teacher = counting(small_context)
    view = seen("0", 1)
    for _ in range(3):
        with TeacherAnswers(context) as answers:
            assert torch.equal(answers.of(view)[EVERY], predict(small_context.teacher, view.samples))
    assert teacher.samples == len(view.samples)


@pytest.mark.parametrize("form", [AnswerForm(), AnswerForm(kind="half"), AnswerForm(kind="sparse", top=1, samples=2)])
def test_any_cache_and_none_give_the_same_answers(small_context, tmp_path, form):
    view, found = seen("0", 1), []
    for number, limit in enumerate((None, 0, 100)):
        context = replaced(small_context, cache=tmp_path / f"c{number}", cache_bytes=limit)
        with TeacherAnswers(context, form=form) as answers:
            found += [answers.of(view)[EVERY], answers.of(view)[EVERY]]
        assert any(context.cache.glob("*.answers")) == (limit is None)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_killed_computation_goes_on_at_its_block_and_ends_with_the_same_answers(small_context):
    context, teacher = counting(small_context, killed_at=3)
    view = seen("0", 1)
    with TeacherAnswers(context) as answers, pytest.raises(KeyboardInterrupt):
        answers.of(view)
    assert teacher.samples == 2 * BLOCK
    with TeacherAnswers(context) as answers:
        assert torch.equal(answers.of(view)[EVERY], predict(small_context.teacher, view.samples))
    assert teacher.samples == len(view.samples)


def test_a_broken_block_alone_is_asked_for_again(small_context):
    context, teacher = counting(small_context)
    view = seen("0", 1)
    with TeacherAnswers(context) as answers:
        answers.of(view)
    (path,) = context.cache.glob("*.answers")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with TeacherAnswers(context) as answers:
        assert torch.equal(answers.of(view)[EVERY], predict(small_context.teacher, view.samples))
    assert teacher.samples == len(view.samples) + 30


def test_another_view_seed_data_teacher_or_form_is_another_file(small_context):
    view = seen("0", 1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    data = dataclasses.replace(small_context.data, fingerprint="other")
    cases = [
        (small_context, view, None),
        (small_context, seen("1", 2), None),
        (replaced(small_context, seed=1), view, None),
        (replaced(small_context, data=data), view, None),
        (replaced(small_context, teacher=other), view, None),
        (small_context, view, AnswerForm(kind="half")),
    ]
    for number, (context, one, form) in enumerate(cases):
        with TeacherAnswers(context, form=form) as answers:
            answers.of(one)
        assert len(list(small_context.cache.glob("*.answers"))) == number + 1


def test_what_does_not_fit_is_computed_each_time_with_a_word_about_it(small_context):
    notes: list[Event] = []
    context, teacher = counting(replaced(small_context, emit=notes.append))
    views = [seen(str(number), number) for number in range(3)]
    with TeacherAnswers(context) as answers:
        answers.of(views[0])
    (path,) = context.cache.glob("*.answers")
    teacher.samples = 0
    context = replaced(context, cache_bytes=2 * path.stat().st_size)
    with TeacherAnswers(context) as answers:
        for _ in range(3):
            for view in views:
                assert torch.equal(answers.of(view)[EVERY], predict(small_context.teacher, view.samples))
    assert teacher.samples == 4 * len(EVERY)  # view 1 once, view 2 each time; view 0 was there
    assert len([event for event in notes if isinstance(event, Note)]) == 1
    assert any(isinstance(event, Progress) and event.done == event.total for event in notes)


def test_a_teacher_that_can_be_loaded_again_is_let_go_once_all_is_answered(small_context):
    counted = Counting(small_context.teacher)
    loads: list[int] = []

    def load() -> nn.Module:
        loads.append(counted.samples)
        return counted

    for teacher in (Apart("a" * 64, load), Several([small_context.teacher, Apart("a" * 64, load)])):
        (apart,) = asked_only(teacher)
        counted.samples = 0
        loads.clear()
        with TeacherAnswers(small_context, teacher) as answers:
            answers.prepare([lambda: seen("0", 1), lambda: seen("1", 2)])
            assert apart._loaded == []
            answers.of(seen("1", 2))
        assert (loads, counted.samples) == ([0], 2 * len(EVERY))


def test_a_folder_that_may_not_be_written_says_what_to_do(small_context, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kdc.distill.cache.opened", refuse)
    with TeacherAnswers(small_context) as answers, pytest.raises(FolderError, match="Permission denied") as raised:
        answers.of(seen("0", 1))
    assert "--teacher-cache" in str(raised.value)


@pytest.mark.parametrize("place", ["", "teacher.json"])
def test_a_shared_folder_that_is_a_link_is_refused(tmp_path, place):
    mine, shared = tmp_path / "mine", tmp_path / "shared"
    mine.mkdir()
    (shared / place).parent.mkdir(exist_ok=True)
    (shared / place).symlink_to(mine / "new" if place else mine)
    with pytest.raises(FolderError, match="symbolic link"):
        claim(shared, "teacher-a", "data-a")
    assert list(mine.iterdir()) == []


@pytest.mark.parametrize("stand", ["link", "dangling link", "folder", "pipe", "a length of gigabytes"])
def test_what_stands_in_a_views_place_is_removed_and_the_view_computed(tmp_path, stand):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    path = tmp_path / "cache" / source(0).name()
    path.parent.mkdir()
    match stand:
        case "link":
            path.symlink_to(mine)
        case "dangling link":
            path.symlink_to(tmp_path / "nothing")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.write_bytes(b"kdc-ans\x01" + b"\xff" * 4 + b"x" * 100)
    cache = Cache(tmp_path / "cache", 10 * SIZE)
    assert cache.find(path, source(0)) is None
    assert not os.path.lexists(path)
    cache.close()
    assert mine.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.lock").symlink_to(tmp_path / "nothing")
    Cache(tmp_path / "cache", 10 * SIZE).find(tmp_path / "cache" / "x.answers", source(0))
    assert not (tmp_path / "nothing").exists()
