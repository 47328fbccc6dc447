"""Temporary folders: gone with their process, and swept by the next one where it was killed."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kdc.core import scratch
from kdc.core.errors import FolderError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks on folders are POSIX's")

HELD = """
import sys, time
from kdc.core import scratch
folder = scratch.lasting_folder("held")
(folder / "sample").write_text("a user's")
print(folder, flush=True)
if sys.argv[1] == "stay":
    time.sleep(60)
if sys.argv[1] == "fail":
    raise RuntimeError
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The system's temporary folder, of this test alone."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(scratch, "_own", {})
    return folder


def start(how):
    return subprocess.Popen([sys.executable, "-c", HELD, how], stdout=subprocess.PIPE, text=True)


def killed():
    """What a killed process left."""
    process = start("stay")
    folder = Path(process.stdout.readline().strip())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return folder


def test_folders_lie_in_one_of_the_processs_own_that_only_its_user_can_enter(temporary):
    with scratch.scratch_folder("one") as one:
        other = scratch.lasting_folder("other")
        (own,) = temporary.iterdir()
        assert one.parent == other.parent == own
        assert one != other
        for folder in (own, one, other):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert scratch.environment() == {"TMPDIR": str(own)}
    assert [*own.iterdir()] == [other]
    scratch.end()
    assert [*temporary.iterdir()] == []


def test_a_folder_is_gone_after_an_error_in_the_block(temporary):
    with pytest.raises(KeyboardInterrupt), scratch.scratch_folder("one") as folder:
        raise KeyboardInterrupt
    assert not folder.exists()


@pytest.mark.parametrize("how", ["end", "fail"])
def test_a_process_that_ends_leaves_nothing(temporary, how):
    process = start(how)
    assert str(temporary) in process.communicate()[0]
    assert [*temporary.iterdir()] == []


def test_what_a_killed_process_left_is_swept_by_the_next(temporary):
    assert killed().exists()
    folder = scratch.lasting_folder("next")
    assert [*temporary.iterdir()] == [folder.parent]


def test_a_living_processs_folder_is_not_swept(temporary):
    process = start("stay")
    folder = Path(process.stdout.readline().strip())
    scratch.sweep()
    assert (folder / "sample").exists()
    process.kill()
    process.communicate()
    scratch.sweep()
    assert not folder.exists()


FORKED = """
import os, time
from kdc.core import scratch
folder = scratch.lasting_folder("held")
print(folder, flush=True)
if os.fork() == 0:
    time.sleep(60)
os._exit(0)
"""


def test_a_fork_keeps_the_folder_of_its_parent_that_is_gone(temporary):
    parent = subprocess.Popen([sys.executable, "-c", FORKED], stdout=subprocess.PIPE, text=True, start_new_session=True)
    folder = Path(parent.stdout.readline().strip())
    parent.wait()
    try:
        scratch.sweep()
        assert folder.exists()
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()
    end = time.monotonic() + 20
    while folder.exists() and time.monotonic() < end:
        scratch.sweep()
    assert not folder.exists()


def test_links_are_not_followed_and_what_is_not_a_folder_of_this_users_stays(temporary, tmp_path):
    name = f"kdc-{os.getuid()}-"
    own = tmp_path / "mine"
    own.mkdir()
    (own / "work").write_text("a week's")
    (temporary / f"{name}link").symlink_to(own)
    (temporary / f"{name}file").write_text("not a folder")
    (temporary / "kdc-notes").mkdir()
    (temporary / f"kdc-{os.getuid() + 1}-abc").mkdir()
    dead = temporary / f"{name}dead"
    dead.mkdir()
    (dead / "link").symlink_to(own)
    scratch.sweep()
    left = {path.name for path in temporary.iterdir()}
    assert left == {f"{name}link", f"{name}file", "kdc-notes", f"kdc-{os.getuid() + 1}-abc"}
    assert (own / "work").read_text() == "a week's"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_another_users_folder_stays_whatever_its_name(temporary):
    other = temporary / f"kdc-{os.getuid()}-abc"
    other.mkdir()
    os.chown(other, 12345, 12345)
    scratch.sweep()
    assert other.exists()


def test_where_folders_cannot_be_locked_they_are_swept_by_age_alone(temporary, monkeypatch):
    def no_locks(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(scratch.fcntl, "flock", no_locks)
    own = scratch.lasting_folder("one").parent
    assert scratch.FRESH in own.name
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    scratch.sweep()
    assert own.exists()
    long_ago = time.time() - scratch.FRESH_SECONDS - 60
    os.utime(own, (long_ago, long_ago))
    scratch.sweep()
    assert not own.exists()
    scratch._own.clear()


def test_a_processs_folder_that_something_removed_is_made_anew(temporary):
    first = scratch.lasting_folder("one").parent
    shutil.rmtree(first)
    assert scratch.lasting_folder("two").parent.is_dir()


def test_where_no_temporary_folder_can_be_made_it_is_told(monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(FolderError, match=r"can be made: No space left on device[\s\S]*TMPDIR"):
        scratch.lasting_folder("one")
