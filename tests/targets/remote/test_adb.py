"""An Android device, by a program that stands in for `adb`: it records its calls, and runs them on this machine."""

import json
import sys

import pytest
from remote_devices import folders_in, processes_with

from kdc.core.errors import TargetError
from targets.measure import Settings, compare
from targets.process import Workplace
from targets.remote import adb

SHORT = Settings(seconds=0.5, processes_min=3, processes_max=3, slice_seconds=0.02)

FAKE = """#!{python}
import json, os, shutil, sys
with open({log!r}, "a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
dash_s, serial, verb, *rest = sys.argv[1:]
if dash_s != "-s" or serial != "R58M123":
    sys.exit(f"adb: device '{{serial}}' not found")
if verb == "push":
    os.makedirs(os.path.dirname(rest[1]), exist_ok=True)
    shutil.copyfile(*rest)
elif verb == "shell":
    os.execv("/bin/sh", ["sh", "-c", rest[-1]])
else:
    sys.exit("adb: unknown command " + verb)
"""


@pytest.fixture
def phone(tmp_path, monkeypatch, device, python):
    """Its address; `calls` gives what adb was called with."""
    program, log = tmp_path / "adb", tmp_path / "calls"
    program.write_text(FAKE.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("KDC_ADB", str(program))
    (tmp_path / "phone").mkdir()
    monkeypatch.setattr(adb, "FOLDER", str(tmp_path / "phone"))
    here = device.model_copy(update={"address": f"adb://R58M123?python={python}"})
    return here, lambda: [json.loads(line) for line in log.read_text().splitlines()]


def test_a_file_is_measured_by_way_of_adb_and_nothing_is_left(phone, linear, tmp_path):
    there, calls = phone
    found = compare(linear()[0], None, there, settings=SHORT)
    assert len(found.samples_ns[0]) == 3
    assert found.environment["device"] == "adb://R58M123"
    made, push, shell = calls()
    assert "mktemp -d" in made[4]
    assert push[:3] == ["-s", "R58M123", "push"]
    assert push[-1].endswith("/agent.pyz")
    assert shell[:4] == ["-s", "R58M123", "shell", "-T"]
    assert shell[4].endswith(f" {push[-1]} serve")
    assert folders_in(tmp_path / "phone") == []
    assert processes_with(tmp_path / "phone") == []


def test_a_phone_that_is_not_there_is_told(phone):
    there, _ = phone
    with pytest.raises(TargetError, match=r"adb://X9: adb knows no such device\n[\s\S]*adb devices"):
        Workplace(None, there.model_copy(update={"address": "adb://X9"}))


def test_a_phone_without_python_is_told_and_what_was_pushed_is_removed(phone, tmp_path):
    there, calls = phone
    with pytest.raises(TargetError, match="there is no no-python on the device"):
        Workplace(None, there.model_copy(update={"address": "adb://R58M123?python=no-python"}))
    assert calls()[-1][3].startswith("rm -rf ")
    assert folders_in(tmp_path / "phone") == []


def test_a_missing_adb_is_told(phone, monkeypatch):
    monkeypatch.setenv("KDC_ADB", "no-such-adb")
    with pytest.raises(TargetError, match="there is no program 'no-such-adb'"):
        Workplace(None, phone[0])
